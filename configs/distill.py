"""Distillation: half of a model's layers learn what all of them compute.

    lmjax train --config configs/distill.py:teacher=...,files='data/*.txt' --workdir runs/distilbert
    lmjax train --config configs/distill.py:recipe=decoder,teacher=...,files='data/*.txt' --workdir runs/distilgpt2
    lmjax train --config configs/distill.py:recipe=run,teacher=... --workdir runs/small-sst2

recipe: distilbert, "DistilBERT" (Sanh et al., 2019, arXiv:1910.01108): 6 of BERT's 12 layers, without pooler and types
of tokens, start from the teacher's; loss weights 5 (soft targets at temperature 2), 2 (masked LM) and 1 (cosine of the
last hidden states); positions stay as they are. 66,362,880 of 109,482,240 parameters. Two things differ: the soft
targets are those of masked tokens, not of all, and tokens are masked at random, not the rare ones more often.
decoder: soft targets and next tokens, weights 1 and 1. run: the teacher is a run folder; data, task, optimizer and
evaluations are its own, with soft targets as a second loss, as for a classifier that configs/glue.py has trained.

teacher: a run folder, a Hugging Face folder or a GGUF file. Hardware: the paper took 90 hours on eight V100 GPUs. Time
and expected result: not measured.
"""

from ml_collections import ConfigDict

from lmjax import config
from lmjax.experiment import load_config
from lmjax.models.decoder import PRESETS as DECODERS
from lmjax.models.encoder import PRESETS as ENCODERS
from lmjax.storage.section import model_section

DISTILL = "lmjax.tasks.distill:Distill"


def get_config(argument: str = "") -> ConfigDict:
  choice = config.variant(
    argument, recipe=("distilbert", "decoder", "run"), teacher="", files="data/*.txt", dtype="float32", debug=False
  )
  recipe = {"distilbert": distilbert, "decoder": decoder, "run": run}[choice.recipe]
  settings = ConfigDict(recipe(choice))
  if choice.debug:
    like_teacher = dict(model=settings.model, tokenizer=settings.data.tokenizer)
    config.debug(settings)
    if choice.teacher:  # only data and steps are small
      settings.model, settings.data.tokenizer = like_teacher["model"], like_teacher["tokenizer"]
  return settings


def kept_of(depth: int) -> tuple[int, ...]:
  """Returns half of the layers, the first and the last among them: 0, 2, 4, 7, 9, 11 of 12."""
  kept = max(depth // 2, 1)
  return tuple(round(i * (depth - 1) / max(kept - 1, 1)) for i in range(kept))


def student(choice, preset: dict, **changes) -> tuple[dict, dict, tuple[int, ...]]:
  """Returns the sections `model` and `start`, and the layers that are kept; without a teacher, of a preset."""
  if choice.teacher:
    model = model_section(choice.teacher, dtype="float32")
  else:
    model = config.given(preset)
  kept = kept_of(model["depth"])
  start = dict(path=choice.teacher, layers=kept) if choice.teacher else {}
  return model | {"depth": len(kept)} | changes, start, kept


def distilbert(choice) -> dict:
  kind = "lmjax.models.encoder:Encoder"
  model, start, kept = student(choice, ENCODERS["bert-base"], kind=kind, token_types=0, pooler=False, dropout=0.1)
  text = dict(kind="lmjax.data.sources.text:TextFiles", files=choice.files)
  tokenizer = dict(algorithm="wordpiece", path=choice.teacher, size=model.get("vocabulary", 30522))
  return dict(
    steps=200_000,
    batch=256,
    start=start,
    data=dict(
      kind="lmjax.data.objectives.masked_lm:SentencePairs",
      length=512,
      max_predictions=77,
      next_sentence=False,
      tokenizer=tokenizer,
      source=dict(split=":99%", **text),
      validation=dict(split="99%:", **text),
    ),
    model=model,
    task=dict(
      kind=DISTILL,
      task=dict(kind="lmjax.tasks.masked_lm:MaskedLM"),
      teacher=dict(path=choice.teacher, dtype=choice.dtype),
      temperature=2.0,
      soft_weight=5.0,
      hard_weight=2.0,
      hidden_weight=1.0,
      layer_map=(*[-1] * (len(kept) - 1), kept[-1]),
    ),
    optim=dict(peak_lr=5e-4, schedule="linear", warmup=10_000, weight_decay=0.0, b2=0.98, epsilon=1e-6,
               frozen=("positions",)),
    evals=dict(every=5000, validation=dict(kind="lmjax.evals.validation_loss:ValidationLoss", steps=100)),
    checkpoint=dict(every=5000),
  )  # fmt: skip


def decoder(choice) -> dict:
  model, start, _ = student(choice, dict(DECODERS["gpt2-124m"], kind="lmjax.models.decoder:Decoder"))
  text = dict(kind="lmjax.data.sources.text:TextFiles", files=choice.files)
  return dict(
    steps=20_000,
    batch=64,
    start=start,
    data=dict(
      kind="lmjax.data.objectives.causal:Text",
      length=512,
      tokenizer=dict(path=choice.teacher, size=model.get("vocabulary", 50257)),
      source=dict(split=":99%", **text),
      validation=dict(split="99%:", **text),
    ),
    model=model,
    task=dict(
      kind=DISTILL,
      task=dict(kind="lmjax.tasks.causal_lm:CausalLM", chunk=128),
      teacher=dict(path=choice.teacher, dtype=choice.dtype),
      chunk=128,
    ),
    optim=dict(peak_lr=5e-4, warmup=500),
    evals=dict(every=1000, validation=dict(kind="lmjax.evals.perplexity:Perplexity", steps=100)),
    checkpoint=dict(every=1000),
  )


def run(choice) -> dict:
  settings = load_config(choice.teacher)
  task = settings["task"]["task"] if settings["task"]["kind"] == DISTILL else settings["task"]
  model, start, _ = student(choice, {})
  settings["data"]["tokenizer"] = dict(path=choice.teacher)
  teacher = dict(path=choice.teacher, dtype=choice.dtype)
  return settings | dict(model=model, start=start, task=dict(kind=DISTILL, task=task, teacher=teacher, temperature=2.0))
