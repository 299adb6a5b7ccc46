"""GLUE (Wang et al., 2018), arXiv:1804.07461: classification of sentences and of pairs, from saved weights.

    lmjax train --config configs/glue.py:task=sst2,start=... --workdir runs/sst2
    lmjax predict --workdir runs/sst2 --best --input sentences.txt

task: cola sst2 mrpc stsb qqp mnli qnli rte wnli. start: a run folder, a Hugging Face folder or a GGUF file; the model
and its tokenizer are taken from it. data: the folder of the task's files, as GLUE has them (train.tsv, dev.tsv).

The recipe is that of BERT (Devlin et al., 2019, section 4.1) with bias correction and 10 % warm-up (Mosbach et al.,
2021, arXiv:2006.04884); decoders such as Llama are read without dropout. Hardware: two CPU cores with all-MiniLM-L6-v2
(22.7 M parameters). Time and expected result: sst2 with --config.optim.peak_lr=1e-4, 2,104 steps of 0.15 to 0.25 s,
accuracy 0.897 ± 0.006 (three seeds); mrpc with 2e-4, 343 steps of 0.7 s, F1 0.853 ± 0.010 (three seeds), on a fixed
tenth of the training data. More in benchmarks/README.md.
"""

import dataclasses
import glob
import os

from ml_collections import ConfigDict

from lmjax import config
from lmjax.storage.section import model_section, tokenizer_section

CLASSES = dict(kind="lmjax.tasks.classification:Classification")
BUCKETS = (6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112)  # tokens: half of SST-2 has 10 at most


@dataclasses.dataclass(frozen=True)
class Task:
  """A task of GLUE: its columns, its labels in the order of their numbers, and how it is learned."""

  text: str = "sentence"
  other: str = ""
  label: str = "label"
  names: dict = dataclasses.field(default_factory=dict)  # of labels that are numbers in the files
  metrics: tuple = ("accuracy",)
  train: str = "train.tsv"
  dev: str = "dev.tsv"
  table: dict = dataclasses.field(default_factory=dict)  # further settings of the files
  length: int = 128
  epochs: int = 3
  examples: int = 0  # of the training data
  symmetric: bool = False  # whether the texts of a pair may change places
  lr: float = 5e-5


PAIR = dict(text="sentence1", other="sentence2")
NOT_ENTAILED = {"0": "not_entailment", "1": "entailment"}
TASKS = {
  "cola": Task("3", "", "1", {"0": "unacceptable", "1": "acceptable"}, ("matthews", "accuracy"),
               table=dict(header=False), length=64, examples=8551),
  "sst2": Task(names={"0": "negative", "1": "positive"}, length=64, epochs=1, examples=67_349),
  "mrpc": Task("#1 String", "#2 String", "Quality", {"0": "not_equivalent", "1": "equivalent"}, ("f1", "accuracy"),
               examples=3668, symmetric=True),
  "stsb": Task(**PAIR, label="score", metrics=("spearman", "pearson"), examples=5749, symmetric=True),
  "qqp": Task("question1", "question2", "is_duplicate", {"0": "not_duplicate", "1": "duplicate"}, ("f1", "accuracy"),
              examples=363_846, symmetric=True),
  "mnli": Task(**PAIR, label="gold_label", dev="dev_matched.tsv", examples=392_702),
  "qnli": Task("question", "sentence", examples=104_743),
  "rte": Task(**PAIR, examples=2490, epochs=10),
  "wnli": Task(**PAIR, names=NOT_ENTAILED, examples=635),
}  # fmt: skip
LABELS = {
  "mnli": ("entailment", "neutral", "contradiction"),
  "qnli": ("entailment", "not_entailment"),
  "rte": ("entailment", "not_entailment"),
}


def get_config(argument: str = "") -> ConfigDict:
  choice = config.variant(
    argument, task=("sst2", *(name for name in TASKS if name != "sst2")), start="", data="", debug=False
  )
  task = TASKS[choice.task]
  train, dev, table = files_of(choice.task, task, choice.data or f"data/glue/{choice.task}")
  steps = max(task.examples * task.epochs // 32, 1)
  labels = LABELS.get(choice.task, tuple(task.names.values()))
  regression = choice.task == "stsb"
  table = dict(kind="lmjax.data.sources.labelled:Table", text=task.text, other=task.other, label=task.label) | table
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
        buckets=tuple(size for size in BUCKETS if size < task.length),
        labels=() if regression else labels,
        regression=regression,
        symmetric=task.symmetric,
        tokenizer=tokenizer_section(start, model, algorithm="wordpiece", size=8192),
        source=dict(files=train, names=task.names, **table, **({} if dev else dict(split=":90%", shuffle=True))),
        validation=dict(files=dev or train, names=task.names, **table,
                        **({} if dev else dict(split="90%:", shuffle=True))),
      ),
      model=model,
      task=CLASSES,
      optim=dict(peak_lr=task.lr, b2=0.999, schedule="linear", warmup=max(steps // 10, 1), final_lr_ratio=0.0,
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


def files_of(name: str, task: Task, folder: str) -> tuple[str, str, dict]:
  """Returns the training and development files of a task in a folder, and further settings of their table.

  The names are those of GLUE, or those under which the authors of a set publish it. Where there is no development file,
  it is a tenth of the training data, always the same one.
  """

  def first(*names: str) -> str:
    matches = (sorted(glob.glob(os.path.join(folder, pattern))) for pattern in names)
    return next((paths[0] for paths in matches if paths), "")

  train = first(task.train, task.train + ".gz", "in_domain_train.tsv", "msr_paraphrase_train.txt", "*-train.csv")
  dev = first(task.dev, task.dev + ".gz", "in_domain_dev.tsv", "*-dev.csv")
  table = dict(task.table)
  if train.endswith(".csv"):  # STS-B without names of columns
    table |= dict(header=False, text="0", other="1", label="2")
  return train or os.path.join(folder, task.train), dev, table
