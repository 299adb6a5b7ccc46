"""A reward model from comparisons: step 2 of InstructGPT (Ouyang et al., 2022), arXiv:2203.02155.

    lmjax train --config configs/reward.py:start=...,files='data/*.jsonl' --workdir runs/reward

files: JSON lines or lists of comparisons, see lmjax.data.sources.preferences; 5 % are held out. start: a run folder, a
Hugging Face folder or a GGUF file, from which the model starts; the head is new. Without it, a small model is trained
from scratch. answers: of a group, at most; all pairs of a group are in one row, and together they weigh 1.

One epoch: more overfits (section 3.5 of the paper). Hardware: two CPU cores for a small model. Time and expected
result: the loss starts near log 2 = 0.693; compare the accuracy with `length_accuracy`, that of preferring the longer
answer. Not measured yet.
"""

from ml_collections import ConfigDict

from lmjax import config
from lmjax.storage.section import model_section, tokenizer_section


def get_config(argument: str = "") -> ConfigDict:
  choice = config.variant(argument, files="data/*.jsonl", start="", template="", answers="2", debug=False)
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
        answers=int(choice.answers),
        template=choice.template,
        tokenizer=tokenizer_section(start, model, algorithm="bpe", size=4096),
        source=source | dict(split=":95%"),
        validation=source | dict(split="95%:"),
      ),
      model=model,
      task=dict(kind="lmjax.tasks.reward:RewardModel"),
      optim=dict(peak_lr=2e-5 if start else 1e-4, b2=0.999, schedule="cosine", warmup=10),
      evals=dict(every=25, validation=dict(kind="lmjax.evals.validation_loss:ValidationLoss")),
      checkpoint=dict(every=25, metric="-validation_accuracy", keep=1),
      log=dict(every=5),
    )
  )
  return config.debug(settings) if choice.debug else settings
