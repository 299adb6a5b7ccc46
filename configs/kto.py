"""Kahneman-Tversky optimization (Ethayarajh et al., 2024), arXiv:2402.01306: from answers that are desirable or not.

    lmjax train --config configs/kto.py:start=...,files='data/*.jsonl' --workdir runs/kto

files: JSON lines or lists of judged answers or of comparisons, see lmjax.data.sources.judgements; 5 % are held out.
start: a run folder, a Hugging Face folder or a GGUF file: the policy and the reference start as this model. Without it,
a small model starts from scratch and has no reference, to try the code.

beta 0.1 and a rate of 5e-7 are the paper's (section 4); desirable and undesirable weigh 1, for as many answers of both
kinds. With LoRA the reference is the model without the factors: --config.task.reference=base
--config.transform.kind=lmjax.compression.lora:LoRA. Hardware: two CPU cores for a small model. Time and expected
result: the loss starts at 0.5, where policy and reference are the same; not measured further yet.
"""

from ml_collections import ConfigDict

from lmjax import config
from lmjax.storage.section import model_section, tokenizer_section


def get_config(argument: str = "") -> ConfigDict:
  choice = config.variant(argument, files="data/*.jsonl", start="", template="", debug=False)
  start = "" if choice.debug else choice.start
  if start:
    model = model_section(start, dropout=0.0, dtype="float32")
  else:
    model = dict(kind="lmjax.models.decoder:Decoder", width=320, depth=6, heads=5, kv_heads=5, head_size=64, mlp=1280)
  source = dict(kind="lmjax.data.sources.judgements:JsonJudgements", files=choice.files, shuffle=True)
  settings = ConfigDict(
    dict(
      steps=100,
      batch=8,
      start=dict(path=start),
      data=dict(
        kind="lmjax.data.objectives.judgements:Judgements",
        length=1024,
        template=choice.template,
        tokenizer=tokenizer_section(start, model, algorithm="bpe", size=4096),
        source=source | dict(split=":95%"),
        validation=source | dict(split="95%:"),
      ),
      model=model,
      task=dict(kind="lmjax.tasks.kto:KTO", reference=start or "none", beta=0.1, desirable=1.0, undesirable=1.0),
      optim=dict(peak_lr=5e-7 if start else 1e-4, b2=0.999, schedule="linear", warmup=10, final_lr_ratio=0.0),
      evals=dict(every=25, validation=dict(kind="lmjax.evals.validation_loss:ValidationLoss")),
      checkpoint=dict(every=25),
      log=dict(every=5),
    )
  )
  return config.debug(settings) if choice.debug else settings
