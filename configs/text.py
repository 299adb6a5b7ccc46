"""Your own text: a small GPT with a byte-level BPE tokenizer that is trained on the text first.

    lmjax train --config configs/text.py:files=my/*.txt --workdir runs/text
    lmjax train --config configs/text.py:prepared=data/books --workdir runs/books

files: a path or glob, plain or .gz. prepared: the output of `lmjax prepare --validation 0.01`, which includes a
tokenizer. 9 M parameters, 2,000 steps of 16 x 256 tokens. Hardware: one accelerator; on a laptop, use a smaller model
and fewer steps (`--config.model.depth=4 --config.steps=300`). Time: not measured. Expected: depends on the text;
compare with the baselines that the run computes.
"""

from ml_collections import ConfigDict

from lmjax import config


def get_config(argument: str = "") -> ConfigDict:
  choice = config.variant(argument, files="my/*.txt", prepared="", debug=False)
  tokenizer = dict(algorithm="bpe", size=4096)
  files = dict(kind="lmjax.data.sources.text:TextFiles", files=choice.files)
  source, validation = files | dict(split=":95%"), files | dict(split="95%:")
  if choice.prepared:
    tokenizer = dict(path=choice.prepared)
    source, validation = (
      dict(kind="lmjax.data.sources.shards:Prepared", folder=choice.prepared, split=s) for s in ("train", "validation")
    )
  settings = ConfigDict(
    dict(
      steps=2000,
      batch=16,
      data=dict(
        kind="lmjax.data.objectives.causal:Text",
        length=256,
        tokenizer=tokenizer,
        source=source,
        validation=validation,
      ),
      model=dict(
        kind="lmjax.models.decoder:Decoder",
        width=320, depth=6, heads=5, kv_heads=5, head_size=64, mlp=1280, dropout=0.1,
      ),
      task=dict(kind="lmjax.tasks.causal_lm:CausalLM"),
      optim=dict(peak_lr=1e-3, warmup=100, weight_decay=0.1),
      evals=dict(
        every=200,
        validation=dict(kind="lmjax.evals.perplexity:Perplexity", steps=40),
        # Ngrams holds all tokens in memory, too many for a large corpus.
        **({} if choice.prepared else dict(baseline=dict(kind="lmjax.evals.baselines.ngrams:Ngrams"))),
      ),
      checkpoint=dict(every=200),
    )
  )  # fmt: skip
  return config.debug(settings) if choice.debug else settings
