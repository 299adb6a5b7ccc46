"""SuperGLUE (Wang et al., 2019), arXiv:1905.00537: its tasks of one or two texts, from saved weights.

    lmjax train --config configs/superglue.py:task=boolq,start=...,data=superglue/BoolQ --workdir runs/boolq

task: boolq cb rte wic wsc; for COPA, MultiRC and ReCoRD see docs/fine_tuning.md. start: a run folder, a Hugging Face
folder or a GGUF file. data: the folder of the task's files, as they are published (train.jsonl, val.jsonl).

Word in context and the Winograd schemas are read as pairs of texts, without the vectors of the marked words. The recipe
is that of configs/glue.py. Hardware: two CPU cores with all-MiniLM-L6-v2 (22.7 M parameters). Time and expected result:
not measured.
"""

import dataclasses
import os

from ml_collections import ConfigDict

from lmjax import config
from lmjax.storage.section import model_section, tokenizer_section


@dataclasses.dataclass(frozen=True)
class Task:
  """A task: which fields of a record are an example, its labels in their order, and how it is learned."""

  text: str
  other: str = ""
  labels: tuple = ("false", "true")
  metrics: tuple = ("accuracy",)
  examples: int = 0  # of the training data
  epochs: int = 10
  length: int = 128


TASKS = {
  "boolq": Task("{question}?", "passage", examples=9427, epochs=3, length=256),
  "cb": Task("premise", "hypothesis", labels=("entailment", "contradiction", "neutral"), examples=250, length=256,
             metrics=("accuracy", "macro_f1")),
  "rte": Task("premise", "hypothesis", labels=("entailment", "not_entailment"), examples=2490),
  "wic": Task("{word}: {sentence1}", "sentence2", examples=5428, length=64),
  "wsc": Task("text", "{target.span2_text} is {target.span1_text}", examples=554),
}  # fmt: skip


def get_config(argument: str = "") -> ConfigDict:
  choice = config.variant(
    argument, task=("boolq", *(name for name in TASKS if name != "boolq")), start="", data="", debug=False
  )
  task = TASKS[choice.task]
  folder = choice.data or f"data/superglue/{choice.task}"
  source = dict(kind="lmjax.data.sources.labelled_records:JsonRecords", text=task.text, other=task.other)
  steps = max(task.examples * task.epochs // 32, 1)
  start = "" if choice.debug else choice.start
  if start:
    model = model_section(start, dropout=0.1, scale_output=False, tie_embeddings=True, dtype="float32")
  else:
    model = dict(kind="lmjax.models.encoder:Encoder", width=384, depth=6, heads=12, head_size=32, mlp=1536, dropout=0.1)
  settings = ConfigDict(
    dict(
      steps=steps,
      batch=32,
      start=dict(path=start),
      data=dict(
        kind="lmjax.data.objectives.labelled:Labelled",
        length=task.length,
        buckets=tuple(size for size in (32, 48, 64, 96, 128, 192) if size < task.length),
        labels=task.labels,
        tokenizer=tokenizer_section(start, model, algorithm="wordpiece", size=8192),
        source=source | dict(files=os.path.join(folder, "train.jsonl")),
        validation=source | dict(files=os.path.join(folder, "val.jsonl")),
      ),
      model=model,
      task=dict(kind="lmjax.tasks.classification:Classification"),
      optim=dict(peak_lr=5e-5, b2=0.999, schedule="linear", warmup=max(steps // 10, 1), final_lr_ratio=0.0,
                 weight_decay=0.01),
      evals=dict(
        every=max(steps // (4 * task.epochs), 1),
        dev=dict(kind="lmjax.evals.task_metrics:TaskMetrics", metrics=task.metrics),
      ),
      checkpoint=dict(every=max(steps // (4 * task.epochs), 1), metric=f"-dev_{task.metrics[0]}", keep=1),
      log=dict(every=20),
    )
  )  # fmt: skip
  return config.debug(settings) if choice.debug else settings
