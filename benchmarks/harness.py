"""Suites of a decoder beside lm-evaluation-harness with its own model of transformers: items, then speed.

    python benchmarks/harness.py --model FOLDER --data DATA --limit 20
    python benchmarks/harness.py --model FOLDER --data DATA --limit 50 --time
    python benchmarks/harness.py --model FOLDER --text FILE --bytes 200000 --time

FOLDER: a Hugging Face folder; DATA: that of `lmjax evaluate --data`. For each task, one JSON line: the largest relative
difference of a log-likelihood, and how many items have another choice. --time: seconds of the log-likelihoods of PIQA,
or with --text of the first bytes of a text file as one document, in windows as long as the model. float32, 2 threads,
each program alone after one run of the same requests, in turn: lmjax, then the harness at batch sizes 1, 8, 16 and 32.
Loading and intervals are not counted.
"""

import argparse
import json
import pathlib
import tempfile
import time

import datasets
import numpy as np
import torch
from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from lmjax import storage
from lmjax.evals.suites.task_files import TaskFile
from lmjax.inference import suite as suites
from lmjax.inference.harness import HarnessModel
from lmjax.utils.memory import keep_memory

TASKS = ("piqa", "arc_easy", "winogrande", "openbookqa", "lambada")
FIELDS = ("task", "dataset_path", "output_type", "doc_to_text", "doc_to_target", "doc_to_choice", "target_delimiter")


def theirs(task: TaskFile, data: pathlib.Path, folder: pathlib.Path) -> dict:
  """Returns a task as the harness reads it; labels that are in another file are put into the data."""
  ((split, file),) = task.dataset_kwargs["data_files"].items()
  path = data / file
  if "labels" in task.metadata:
    labels = (data / task.metadata["labels"]).read_text().split()
    rows = map(json.loads, path.read_text().splitlines())
    path = folder / f"{task.task}.jsonl"
    path.write_text("".join(json.dumps(row | {"label": int(n)}) + "\n" for row, n in zip(rows, labels, strict=True)))
  fields = {name: getattr(task, name) for name in FIELDS if getattr(task, name) is not None}
  names = [{"metric": metric} for metric in task.metrics()]
  return fields | {"dataset_kwargs": {"data_files": {"test": str(path)}}, "test_split": "test", "metric_list": names}


def values_of(sample: dict) -> np.ndarray:
  pairs = [response[0] if isinstance(response[0], list | tuple) else response for response in sample["resps"]]
  return np.array([float(pair[0]) for pair in pairs])


def compare(model: HFLM, loaded, options: argparse.Namespace, folder: pathlib.Path) -> None:
  """Prints how far the log-likelihoods of each task differ."""
  for name in TASKS:
    (task,) = suites.choose(name)
    own = suites.Suite([task], folder / "own", data=options.data, limit=options.limit)
    suites.evaluate(loaded, own)
    records = [json.loads(line) for line in (folder / "own" / f"{name}.jsonl").read_text().splitlines()[1:]]
    wanted = theirs(task, pathlib.Path(options.data), folder)
    found = evaluator.simple_evaluate(model, tasks=[wanted], limit=options.limit, bootstrap_iters=0)["samples"][name]
    samples, worst, choices = {sample["doc_id"]: sample for sample in found}, 0.0, 0
    for record in records:
      values = np.atleast_1d(record.get("log_likelihoods", record.get("log_likelihood")))
      others = values_of(samples[record["item"]])
      worst = max(worst, float(np.max(np.abs(values - others) / np.abs(others))))
      choices += int(np.argmax(values) != np.argmax(others))
    print(json.dumps({"task": name, "items": len(records), "worst": worst, "other_choices": choices}), flush=True)


def measure(model: HFLM, options: argparse.Namespace) -> None:
  """Prints the seconds of both programs for the same requests."""
  if options.text:
    text = pathlib.Path(options.text).read_bytes()[: options.bytes].decode("utf-8", "ignore")
    compete(model, options, "loglikelihood_rolling", [Instance("loglikelihood_rolling", {}, (text,), 0)])
    return
  rows = [json.loads(line) for line in (pathlib.Path(options.data) / "eval_piqa/valid.jsonl").open()][: options.limit]
  pairs = [(f"Question: {row['goal']}\nAnswer:", " " + row[key]) for row in rows for key in ("sol1", "sol2")]
  compete(model, options, "loglikelihood", [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)])


def compete(model: HFLM, options: argparse.Namespace, method: str, requests: list[Instance]) -> None:
  """Prints the seconds of both programs for the same requests, in turn."""
  own = HarnessModel(options.model)
  for turn in range(options.turns + 1):  # the first compiles
    for batch in (None, 1, 8, 16, 32) if turn else (None, 32):
      scorer = own if batch is None else model
      model.batch_size_per_gpu = batch or 1
      began = time.perf_counter()
      values = getattr(scorer, method)(requests, disable_tqdm=True)
      if turn:
        seconds, program = round(time.perf_counter() - began, 2), "lmjax" if batch is None else f"hf, batch {batch}"
        total = float(np.sum([value[0] if isinstance(value, tuple) else value for value in values]))
        print(json.dumps({"program": program, "seconds": seconds, "log_likelihood": total}), flush=True)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument("--model", required=True)
  parser.add_argument("--data")
  parser.add_argument("--text")
  parser.add_argument("--bytes", type=int, default=200_000)
  parser.add_argument("--limit", type=int, default=20)
  parser.add_argument("--turns", type=int, default=2)
  parser.add_argument("--time", action="store_true")
  options = parser.parse_args()
  keep_memory()  # as lmjax's commands do on a CPU
  torch.set_num_threads(2)
  model = HFLM(pretrained=options.model, device="cpu", dtype="float32", batch_size=8)
  with tempfile.TemporaryDirectory() as folder:
    datasets.config.HF_DATASETS_CACHE = pathlib.Path(folder) / "cache"
    if options.time:
      measure(model, options)
    else:
      compare(model, storage.open(options.model).load(), options, pathlib.Path(folder))


if __name__ == "__main__":
  main()
