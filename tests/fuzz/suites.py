"""The files of a suite: a task in YAML, its data, a template file it includes, and results that are kept."""

import json
import pathlib

from lmjax.evals.suites import metrics, task_files
from lmjax.evals.suites.items import make_items
from lmjax.inference.suite import ItemFile, prompt_hash

BASE = """
dataset_path: json
dataset_kwargs: {data_files: {test: test.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: which colour has {{thing}}?"
doc_to_choice: choices
doc_to_target: gold
num_fewshot: 1
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
KEY = {"version": 0}


def make(folder: pathlib.Path) -> None:
  """Writes a file of each kind."""
  (folder / "base.yaml").write_text(BASE)
  (folder / "task.yaml").write_text("task: colours\ninclude: base.yaml\n")
  docs = [{"thing": f"thing {i}", "choices": ["green", "blue"], "gold": i % 2} for i in range(4)]
  (folder / "test.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
  (task,) = task_files.load(str(folder / "task.yaml"))
  items = make_items(task, str(folder))
  first = [{"item": item.number, "prompt": prompt_hash(item)} for item in items]
  scores = [metrics.score_choices(item, [-1.0, -2.0]) for item in items]
  ItemFile(folder / "kept.jsonl", KEY).add(one | two for one, two in zip(first, scores, strict=True))


def read(folder: pathlib.Path) -> None:
  """Reads all of them."""
  for task in task_files.load(str(folder / "task.yaml")):
    items, kept = make_items(task, str(folder)), ItemFile(folder / "kept.jsonl", KEY)
    if records := [kept.records[item.number] for item in items if kept.has(item)]:
      metrics.summarise(task, records)
