"""The Transformer: "Attention is all you need" (Vaswani et al., 2017), arXiv:1706.03762.

    lmjax train --config configs/transformer.py:size=base,sources=train.en,targets=train.de --workdir runs/base
    lmjax train --config configs/transformer.py:multi30k,sources=train.en.gz,targets=train.de.gz --workdir runs/m30k

size: base big. Line i of `targets` is the translation of line i of `sources`. A joint SentencePiece BPE vocabulary of
37,000 is trained unless `tokenizer` is given. 100,000 steps of about 25,000 source and 25,000 target tokens. Hardware
and time in the paper: 8 GPUs, 12 hours for base. Expected: the paper's 27.3 BLEU (base) and 28.4 (big) on WMT 2014
English-German; not measured.

multi30k: a small model, English to German, with a vocabulary of 8,000; the last 1,000 training pairs select the
checkpoint. Hardware: one CPU core. Time: 67 minutes. Expected: 37.6 BLEU on the validation set with greedy decoding,
38.2 with 4 beams (`lmjax evaluate`); see benchmarks/README.md.
"""

from ml_collections import ConfigDict

from lmjax import config
from lmjax.models.encoder_decoder import PRESETS


def get_config(argument: str = "") -> ConfigDict:
  choice = config.variant(
    argument, size=("base", "big"), multi30k=False, sources="train.en", targets="train.de", tokenizer="", debug=False
  )
  lines = dict(kind="lmjax.data.sources.pairs:ParallelLines", sources=choice.sources, targets=choice.targets)
  settings = ConfigDict(
    dict(
      steps=100_000,
      batch=96,
      mesh=dict(data=1, fsdp=-1),
      rules="fsdp",
      data=dict(
        kind="lmjax.data.objectives.seq2seq:TextToText",
        length=256,
        target_length=256,
        tokenizer=dict(algorithm="sentencepiece_bpe", path=choice.tokenizer, size=37_000),
        source=dict(split=":99.9%", **lines),
        validation=dict(split="99.9%:", **lines),
      ),
      model=dict(
        kind="lmjax.models.encoder_decoder:EncoderDecoder", dtype="bfloat16",
        dropout=0.1 if choice.size == "base" else 0.3,
        **config.given(PRESETS[f"transformer-{choice.size}"]),
      ),
      task=dict(kind="lmjax.tasks.seq2seq:Seq2Seq", smoothing=0.1),
      optim=dict(
        peak_lr=7e-4 if choice.size == "base" else 5e-4, schedule="inverse_sqrt", warmup=4000,
        b2=0.98, epsilon=1e-9, weight_decay=0.0, clip=0.0,
      ),
      evals=dict(every=1000, validation=dict(kind="lmjax.evals.validation_loss:ValidationLoss", steps=20)),
      checkpoint=dict(every=1000),
      log=dict(every=100),
    )
  )  # fmt: skip
  if choice.multi30k:
    settings.update(steps=3200, batch=16)
    settings.data.update(length=128, target_length=128)
    settings.data.tokenizer.update(algorithm="unigram", size=8000)
    settings.data.source.update(split=":96.552%")
    settings.data.validation.update(split="96.552%:")
    settings.model.update(dtype="float32", width=256, depth=2, heads=4, mlp=512, dropout=0.1)
    settings.optim.update(peak_lr=1.5e-3, warmup=400, schedule="cosine", final_lr_ratio=0.02, clip=1.0)
    settings.evals.update(every=400, validation=dict(kind="lmjax.evals.validation_loss:ValidationLoss", steps=0))
    settings.evals.update(generation=dict(kind="lmjax.evals.generation:Generation", pairs=200))
    settings.checkpoint.update(every=400)
    settings.log.update(every=20)
  return config.debug(settings) if choice.debug else settings
