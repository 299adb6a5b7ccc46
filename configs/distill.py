"""Distillation: half of a model's layers learn what all of them compute (Hinton et al., 2015), arXiv:1503.02531.

    lmjax train --config configs/distill.py:teacher=... --workdir runs/small
    lmjax train --config configs/distill.py:teacher=...,files='data/*.txt' --workdir runs/distilgpt2

teacher: a saved model. Of a run folder, data, task, optimizer and evaluations are those of the run, with soft targets
at temperature 2 as a second loss: a classifier that configs/glue.py has trained, a translator, a language model. With
files, the teacher is a decoder of any format, and the student learns the next tokens of the files and of the teacher.
The student has the first, the last and every second layer between them, and starts from these. debug: a few steps on
small data; the student keeps its size. Hardware: that of the teacher; one CPU core for all-MiniLM-L6-v2 on SST-2. Time:
8 to 13 minutes. Expected: accuracy 0.887 ± 0.004 (five seeds) with three of six layers, the teacher 0.901.
"""

from typing import Any

from ml_collections import ConfigDict

from lmjax import config
from lmjax.experiment import load_config
from lmjax.models.decoder import PRESETS
from lmjax.storage.section import model_section, tokenizer_section

DISTILL = "lmjax.tasks.distill:Distill"


def get_config(argument: str = "") -> ConfigDict:
  choice = config.variant(argument, teacher="", files="", dtype="float32", debug=False)
  if choice.teacher:
    model = model_section(choice.teacher, dtype="float32")
  else:
    model = dict(kind="lmjax.models.decoder:Decoder", **config.given(PRESETS["gpt2-124m"]))
  if choice.teacher and not choice.files:
    settings = like_run(choice.teacher)
  else:
    settings = language_model(choice.files or "data/*.txt", model.get("vocabulary", 50257))
  layers = half_of(model["depth"])
  settings["model"] = model | dict(depth=len(layers))
  settings["start"] = dict(path=choice.teacher, layers=layers) if choice.teacher else {}
  settings["task"] |= dict(kind=DISTILL, teacher=dict(path=choice.teacher, dtype=choice.dtype))
  settings["data"]["tokenizer"] = tokenizer_section(choice.teacher, model, **settings["data"]["tokenizer"])
  settings = ConfigDict(settings)
  if choice.debug:
    like_teacher = ConfigDict(settings.model.to_dict()), settings.data.tokenizer  # `debug` changes the model in place
    config.debug(settings)
    if choice.teacher:
      settings.model, settings.data.tokenizer = like_teacher
  return settings


def half_of(depth: int) -> tuple[int, ...]:
  """Returns half of the layers, the first and the last among them."""
  kept = max(depth // 2, 1)
  return tuple(round(i * (depth - 1) / max(kept - 1, 1)) for i in range(kept))


def like_run(teacher: str) -> dict[str, Any]:
  """Returns the settings of a run, whose task is learned once more."""
  settings = load_config(teacher)
  task = settings["task"]["task"] if settings["task"]["kind"] == DISTILL else settings["task"]
  settings["task"] = dict(task=task, temperature=2.0)
  settings["data"]["tokenizer"] = {}
  return settings


def language_model(files: str, vocabulary: int) -> dict[str, Any]:
  text = dict(kind="lmjax.data.sources.text:TextFiles", files=files)
  return dict(
    steps=20_000,
    batch=64,
    data=dict(
      kind="lmjax.data.objectives.causal:Text",
      length=512,
      tokenizer=dict(size=vocabulary),
      source=dict(split=":99%", **text),
      validation=dict(split="99%:", **text),
    ),
    task=dict(task=dict(kind="lmjax.tasks.causal_lm:CausalLM", chunk=128), chunk=128),
    optim=dict(peak_lr=5e-4, warmup=500),
    evals=dict(every=1000, validation=dict(kind="lmjax.evals.perplexity:Perplexity", steps=100)),
    checkpoint=dict(every=1000),
  )
