"""ELMo: "Deep contextualized word representations" (Peters et al., 2018), arXiv:1802.05365.

    lmjax train --config configs/elmo.py:size=small,files='books/*.txt.gz' --workdir runs/elmo

size: small original. The model predicts the next and the previous word; the state of its LSTMs is carried from batch to
batch. Headers and footers of Project Gutenberg books are removed.

small: 10,000 words, full softmax, 1,500 steps of 32 rows of 20 words. Hardware: one CPU core. Time: 26 minutes.
Expected: perplexity 94.7 forwards and 93.1 backwards; see benchmarks/README.md.

original: 93,600,848 parameters and a softmax over 793,471 words, trained with 8,192 sampled negatives; 1,000,000 steps
of 384 rows of 20 words. Hardware: three GPUs in the original. Time: not measured. Expected: the paper's perplexity of
39.7, the mean of both directions, after 10 epochs of the 1B Word Benchmark; not measured.
"""

from ml_collections import ConfigDict

from lmjax import config
from lmjax.models.elmo import PRESETS


def get_config(argument: str = "") -> ConfigDict:
  choice = config.variant(argument, size=("small", "original"), files="data/*.txt", debug=False)
  text = dict(
    kind="lmjax.data.sources.text:TextFiles",
    files=choice.files,
    chunk_bytes=65_536,
    shuffle=True,
    clean="lmjax.data.sources.text:gutenberg_body",
  )
  settings = ConfigDict(
    dict(
      steps=1_000_000,
      batch=384,
      mesh=dict(data=1, fsdp=-1),
      rules="fsdp",
      data=dict(
        kind="lmjax.data.objectives.bidirectional:BidirectionalText",
        length=20,
        tokenizer=dict(kind="lmjax.data.tokenizers.words:WordTokenizerConfig", size=793_471),
        source=dict(split=":99%", **text),
        validation=dict(split="99%:", **text),
      ),
      model=dict(kind="lmjax.models.elmo:ELMo", dtype="bfloat16", **PRESETS[f"elmo-{choice.size}"]),
      task=dict(kind="lmjax.tasks.bidirectional_lm:BidirectionalLM", negatives=8192),
      optim=dict(peak_lr=1e-3, schedule="inverse_sqrt", warmup=4000, weight_decay=0.0, clip=10.0),
      evals=dict(every=5000, validation=dict(kind="lmjax.evals.validation_loss:ValidationLoss", steps=100)),
      checkpoint=dict(every=5000),
      log=dict(every=100),
    )
  )
  if choice.size == "small":
    settings.update(steps=1500, batch=32)
    settings.data.tokenizer.update(size=10_000)
    settings.data.update(characters=20)
    settings.model.update(dtype="float32")
    settings.task.update(negatives=0)
    settings.optim.update(peak_lr=2e-3, schedule="cosine", warmup=100)
    settings.evals.update(every=250)
    settings.checkpoint.update(every=500)
    settings.log.update(every=10)
  return config.debug(settings) if choice.debug else settings
