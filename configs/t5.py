"""T5: "Exploring the limits of transfer learning" (Raffel et al., 2020), arXiv:1910.10683, and its version 1.1.

    lmjax train --config configs/t5.py:size=small,files='data/*.txt',tokenizer=data/t5 --workdir runs/t5
    lmjax train --config configs/t5.py:size=mini,books='books/*.txt.gz' --workdir runs/mini

size: mini small base large 3b 11b v1_1-small v1_1-base v1_1-large v1_1-xl v1_1-xxl. Span corruption of 15 % of the
tokens in spans of mean length 3, sources of 512 tokens; 524,288 steps of 128 rows, Adafactor and the inverse square
root schedule, as in the paper (whose learning rate is constant where this one rises, in the first 10,000 steps).
consecutive: predict the second half of a sequence from the first half instead. `tokenizer` is a folder with a
SentencePiece model; without it, a vocabulary of 32,000 is trained; 100 sentinels are added. Hardware, time and expected
result: not measured.

books: novels of Project Gutenberg instead, a vocabulary of 8,000, sources of 128 tokens, 1,200 steps of 16 rows.
Hardware: one CPU core. Time: 19 minutes. Expected: validation loss 4.69 nats per target token; see
benchmarks/README.md.
"""

from ml_collections import ConfigDict

from lmjax import config
from lmjax.models.encoder_decoder import PRESETS

SIZES = (
  "mini", "small", "base", "large", "3b", "11b", "v1_1-small", "v1_1-base", "v1_1-large", "v1_1-xl", "v1_1-xxl",
)  # fmt: skip


def get_config(argument: str = "") -> ConfigDict:
  choice = config.variant(
    argument, size=SIZES, files="data/*.txt", books="", tokenizer="", consecutive=False, debug=False
  )
  shape = PRESETS[f"t5-{choice.size}"]
  text = dict(kind="lmjax.data.sources.text:TextFiles", files=choice.files, shuffle=True)
  objective = "Consecutive" if choice.consecutive else "SpanCorruption"
  settings = ConfigDict(
    dict(
      steps=524_288,
      batch=128,
      mesh=dict(data=1, fsdp=-1),
      rules="fsdp",
      data=dict(
        kind="lmjax.data.objectives.denoising:Denoising",
        length=512,
        objective=dict(kind=f"lmjax.data.objectives.denoising:{objective}"),
        tokenizer=dict(
          kind="lmjax.data.tokenizers.sentinels:SentinelTokenizerConfig",
          algorithm="unigram", path=choice.tokenizer, size=shape["vocabulary"] - 100,
          sentinels=100,
        ),
        source=dict(split=":99%", **text),
        validation=dict(split="99%:", **text),
      ),
      model=dict(
        kind="lmjax.models.encoder_decoder:EncoderDecoder", dtype="bfloat16", remat="full",
        **config.given(shape),
      ),
      task=dict(kind="lmjax.tasks.seq2seq:Seq2Seq"),
      optim=dict(optimizer="adafactor", peak_lr=1e-2, schedule="inverse_sqrt", warmup=10_000, weight_decay=0.0),
      evals=dict(every=5000, validation=dict(kind="lmjax.evals.validation_loss:ValidationLoss", steps=50)),
      checkpoint=dict(every=5000),
      log=dict(every=100),
    )
  )  # fmt: skip
  if choice.size in ("3b", "11b", "v1_1-xl", "v1_1-xxl"):  # these need more devices than there are rows in a batch
    settings.rules, settings.mesh.model = "fsdp_tp", 8
  if choice.books:
    novels = dict(files=choice.books, clean="lmjax.data.sources.text:gutenberg_body")
    settings.update(steps=1200, batch=16)
    settings.data.update(length=128)
    settings.data.tokenizer.update(size=8000)
    for part in (settings.data.source, settings.data.validation):
      part.update(novels)
    settings.model.update(dtype="float32", remat="none")
    settings.optim.update(schedule="cosine", warmup=50)
    settings.evals.update(every=100)
    settings.checkpoint.update(every=400)
    settings.log.update(every=10)
  return config.debug(settings) if choice.debug else settings
