"""Odds ratio preference optimization (Hong et al., 2024), arXiv:2403.07691: fine-tuning and preferences in one stage.

    lmjax train --config configs/orpo.py:start=...,files='data/*.jsonl' --workdir runs/orpo

files: JSON lines or lists of comparisons, see lmjax.data.sources.preferences; 5 % are held out. start: a run folder, a
Hugging Face folder or a GGUF file; it needs no fine-tuning on dialogues first, and there is no reference model. Without
it, a small model starts from scratch, to try the code. beta: --config.task.beta, 0.1 to 0.5 in the paper.

Hardware: two CPU cores for a small model. Time and expected result: not measured yet; `odds` starts near log 2 = 0.693.
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
      task=dict(kind="lmjax.tasks.orpo:ORPO", beta=0.1),
      optim=dict(peak_lr=8e-6 if start else 1e-4, b2=0.999, schedule="linear", warmup=10, final_lr_ratio=0.0),
      evals=dict(every=25, validation=dict(kind="lmjax.evals.validation_loss:ValidationLoss")),
      checkpoint=dict(every=25),
      log=dict(every=5),
    )
  )
  return config.debug(settings) if choice.debug else settings
