"""BERT: "Pre-training of Deep Bidirectional Transformers" (Devlin et al., 2019), arXiv:1810.04805.

    lmjax train --config configs/bert.py:size=base,files='data/*.txt',tokenizer=data/bert --workdir runs/bert
    lmjax train --config configs/bert.py:size=mini,books='books/*.txt.gz' --workdir runs/mini

size: mini tiny small medium base large. Masked LM and next sentence prediction, 1,000,000 steps of 256 rows of 512
tokens, as in the paper (which used 128 tokens for the first 90 % of the steps). `tokenizer` is a folder with vocab.txt;
without it, an uncased WordPiece vocabulary of 8,192 tokens is trained. Hardware: base on a v5e-16; the paper took four
days on 16 TPU chips. Time and expected result: not measured.

books: novels of Project Gutenberg instead, with a document for each chapter; 4,000 steps of 32 rows of 64 tokens, in
float32. The batch is small because early in training, the number of steps matters more. Hardware: two CPU cores. Time:
25 minutes. Expected: masked LM accuracy 0.25, next sentence accuracy 0.79; see benchmarks/README.md.
"""

from ml_collections import ConfigDict

from lmjax import config
from lmjax.models.encoder import PRESETS

SIZES = ("mini", "tiny", "small", "medium", "base", "large")


def get_config(argument: str = "") -> ConfigDict:
  choice = config.variant(argument, size=SIZES, files="data/*.txt", books="", tokenizer="", debug=False)
  shape = PRESETS[f"bert-{choice.size}"]
  text = dict(kind="lmjax.data.sources.text:TextFiles", files=choice.files, shuffle=True)
  settings = ConfigDict(
    dict(
      steps=1_000_000,
      batch=256,
      mesh=dict(data=1, fsdp=-1),
      rules="fsdp",
      data=dict(
        kind="lmjax.data.objectives.masked_lm:SentencePairs",
        length=512,
        max_predictions=77,
        tokenizer=dict(algorithm="wordpiece", path=choice.tokenizer, size=shape["vocabulary"]),
        source=dict(split=":98%", **text),
        validation=dict(split="98%:", **text),
      ),
      model=dict(kind="lmjax.models.encoder:Encoder", dtype="bfloat16", dropout=0.1, **config.given(shape)),
      task=dict(kind="lmjax.tasks.masked_lm:MaskedLM"),
      optim=dict(peak_lr=1e-4, schedule="linear", warmup=10_000, weight_decay=0.01),
      evals=dict(every=5000, validation=dict(kind="lmjax.evals.validation_loss:ValidationLoss", steps=100)),
      checkpoint=dict(every=5000),
      log=dict(every=100),
    )
  )
  if choice.books:
    novels = dict(files=choice.books, document="chapter", shuffle=True, clean="lmjax.data.sources.text:gutenberg_body")
    settings.update(steps=4000, batch=32)
    settings.data.update(length=64, max_predictions=10)
    if not choice.tokenizer:
      settings.data.tokenizer.update(size=8192)
    for part in (settings.data.source, settings.data.validation):
      part.update(novels)
    settings.model.update(dtype="float32", dropout=0.0)
    settings.optim.update(peak_lr=1e-3, warmup=500)
    settings.evals.update(every=500, baseline=dict(kind="lmjax.evals.baselines.unigram:UnigramBaseline", steps=100))
    settings.checkpoint.update(every=500)
    settings.log.update(every=20)
  return config.debug(settings) if choice.debug else settings
