"""Direct preference optimization (Rafailov et al., 2023), arXiv:2305.18290, of a decoder that follows instructions.

    lmjax train --config configs/dpo.py:start=...,files='data/*.jsonl' --workdir runs/dpo
    lmjax train --config configs/dpo.py:start=...,files='data/*.jsonl',loss=simpo --workdir runs/simpo

files: JSON lines or lists of comparisons, see lmjax.data.sources.preferences; 5 % are held out. start: a run folder, a
Hugging Face folder or a GGUF file: the policy and the reference start as this model. Without it, a small model starts
from scratch and has no reference, to try the code. loss: dpo, ipo (Azar et al., 2023), or simpo (Meng et al., 2024),
which needs no reference.

With LoRA the reference is the model without the factors, which is in memory anyway: --config.task.reference=base
--config.transform.kind=lmjax.compression.lora:LoRA. Hardware: two CPU cores for a small model. Time and expected
result: the loss starts at log 2 = 0.693; not measured further yet.
"""

from ml_collections import ConfigDict

from lmjax import config
from lmjax.storage.section import model_section, tokenizer_section

LOSSES = {
  "dpo": dict(beta=0.1),
  "ipo": dict(form="ipo", beta=0.1, per_token=True),
  "simpo": dict(beta=2.0, margin=1.0, per_token=True, reference="none"),
}


def get_config(argument: str = "") -> ConfigDict:
  choice = config.variant(
    argument, files="data/*.jsonl", start="", template="", loss=("dpo", "ipo", "simpo"), debug=False
  )
  start = "" if choice.debug else choice.start
  if start:
    model = model_section(start, dropout=0.0, dtype="float32")
  else:
    model = dict(kind="lmjax.models.decoder:Decoder", width=320, depth=6, heads=5, kv_heads=5, head_size=64, mlp=1280)
  source = dict(kind="lmjax.data.sources.preferences:JsonPreferences", files=choice.files, shuffle=True)
  settings = ConfigDict(
    dict(
      steps=100,
      batch=8,
      start=dict(path=start),
      data=dict(
        kind="lmjax.data.objectives.preferences:Preferences",
        length=512,
        template=choice.template,
        tokenizer=tokenizer_section(start, model, algorithm="bpe", size=4096),
        source=source | dict(split=":95%"),
        validation=source | dict(split="95%:"),
      ),
      model=model,
      task=dict(kind="lmjax.tasks.dpo:DPO", reference=start or "none") | LOSSES[choice.loss],
      optim=dict(peak_lr=1e-6 if start else 1e-4, b2=0.999, schedule="linear", warmup=10, final_lr_ratio=0.0),
      evals=dict(every=25, validation=dict(kind="lmjax.evals.validation_loss:ValidationLoss")),
      checkpoint=dict(every=25),
      log=dict(every=5),
    )
  )
  return config.debug(settings) if choice.debug else settings
