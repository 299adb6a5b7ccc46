"""Your own text: a small GPT with a byte-level BPE tokenizer that is trained on the text first.

    lmjax train --config configs/text.py:files='my/*.txt' --workdir runs/text
    lmjax train --config configs/text.py:files=book.txt,clean=gutenberg --workdir runs/book
    lmjax train --config configs/text.py:prepared=data/books,size=large --workdir runs/books

files: a path, a glob or a folder, plain or .gz. prepared: the output of `lmjax prepare --validation 0.01`, which
includes a tokenizer. size: by default what suits the amount of text: small (below 4 MB; 1 M parameters, at most
12 epochs), medium (below 100 MB; 9 M parameters) or large (25 M parameters). clean: `gutenberg` leaves out the header
and the licence of Project Gutenberg's books. Hardware: one accelerator; `small` takes minutes on a laptop. Expected:
depends on the text; compare with the baselines that the run computes. Dracula, clean=gutenberg: 2.02 bits per byte
after 3.4 minutes on two cores.
"""

from ml_collections import ConfigDict

from lmjax import config
from lmjax.data.sources.paths import expand_paths
from lmjax.data.sources.shards import read_index
from lmjax.utils.errors import UserError

# Up to so many bytes of text: ids, tokens of a row, width, depth, heads, steps.
SIZES = {
  "small": (4e6, 1024, 128, 128, 4, 4, 1500),
  "medium": (100e6, 4096, 256, 320, 6, 5, 4000),
  "large": (float("inf"), 8192, 512, 512, 8, 8, 40_000),
}
EPOCHS, BYTES_PER_TOKEN = 12, 2.7  # of small texts at most; of English text with 1,024 ids, about


def get_config(argument: str = "") -> ConfigDict:
  choice = config.variant(
    argument, files="my/*.txt", prepared="", size=("auto", *SIZES), clean=("none", "gutenberg"), debug=False
  )
  total = size_of(choice)
  size = choice.size if choice.size != "auto" else next(name for name in SIZES if (total or 5e6) < SIZES[name][0])
  _, vocabulary, length, width, depth, heads, steps = SIZES[size]
  if total:
    steps = max(min(steps, int(EPOCHS * total / BYTES_PER_TOKEN / (16 * length))), 100)
  tokenizer = dict(algorithm="bpe", size=vocabulary)
  # Documents of 4 kB in a fixed random order: the validation text comes from everywhere in the text, not from its end.
  files = dict(kind="lmjax.data.sources.text:TextFiles", files=choice.files, chunk_bytes=4096, shuffle=True)
  if choice.clean == "gutenberg":
    files["clean"] = "lmjax.data.sources.text:gutenberg_body"
  source, validation = files | dict(split=":95%"), files | dict(split="95%:")
  if choice.prepared:
    tokenizer = dict(path=choice.prepared)
    source, validation = (
      dict(kind="lmjax.data.sources.shards:Prepared", folder=choice.prepared, split=s) for s in ("train", "validation")
    )
  settings = ConfigDict(
    dict(
      steps=steps,
      batch=16,
      data=dict(
        kind="lmjax.data.objectives.causal:Text",
        length=length,
        tokenizer=tokenizer,
        source=source,
        validation=validation,
      ),
      model=dict(
        kind="lmjax.models.decoder:Decoder",
        width=width, depth=depth, heads=heads, kv_heads=0, head_size=0, mlp=4 * width, dropout=0.1,
      ),
      task=dict(kind="lmjax.tasks.causal_lm:CausalLM"),
      optim=dict(peak_lr=1e-3, warmup=max(min(100, steps // 10), 1), weight_decay=0.1),
      evals=dict(
        every=max(min(200, steps // 5), 1),
        validation=dict(kind="lmjax.evals.perplexity:Perplexity", steps=40),
        # Ngrams holds all tokens in memory, too many for a large corpus.
        **({} if choice.prepared else dict(baseline=dict(kind="lmjax.evals.baselines.ngrams:Ngrams"))),
      ),
      checkpoint=dict(every=max(min(200, steps // 5), 1)),
    )
  )  # fmt: skip
  return config.debug(settings) if choice.debug else settings


def size_of(choice) -> int:
  """Returns the bytes of the text, about three times those of a compressed file; 0 where it is not there."""
  try:
    if choice.prepared:
      return read_index(choice.prepared)["counts"]["bytes"]
    return sum(path.stat().length * (3 if path.suffix == ".gz" else 1) for path in expand_paths(choice.files))
  except UserError:
    return 0
