"""Scores of items and of tasks, as lm-evaluation-harness defines them, with bootstrap intervals."""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lmjax.evals.bootstrap import SEED, interval
from lmjax.evals.suites.generated import corpus_score
from lmjax.evals.suites.items import Item
from lmjax.evals.suites.task_files import TaskFile
from lmjax.utils.errors import UserError

Record = dict[str, Any]  # what the JSONL file of a task has of an item


def score_choices(item: Item, log_likelihoods: Sequence[float]) -> Record:
  """Returns which choice is the most likely, as it is, by character and by UTF-8 byte, and whether it is right.

  log_ratio: log p(first choice) - log p(last choice)
  acc: argmax log p(choice);  acc_norm: argmax log p(choice) / characters;  acc_bytes: the same by bytes
  Of choices that are equally likely, each counts in part, so that a model that knows nothing gains nothing by their
  order; lm-evaluation-harness takes the first.
  """
  values = np.asarray(log_likelihoods, np.float64)
  lengths = {
    "acc": np.ones(len(values)),
    "acc_norm": np.array([max(len(choice), 1) for choice in item.choices]),
    "acc_bytes": np.array([max(len(choice.encode()), 1) for choice in item.choices]),
  }
  best = {name: values / length == np.max(values / length) for name, length in lengths.items()}
  right = np.isin(np.arange(len(values)), item.target)
  scaled = np.exp(values - values.max())
  probabilities = scaled / scaled.sum()
  return {
    "log_likelihoods": values.tolist(), "predicted": int(np.argmax(values)), "target": list(item.target),
    "confidence": float(probabilities.max()), "log_ratio": float(values[0] - values[-1]),
  } | {name: float(right[tied].mean() if tied.any() else 0) for name, tied in best.items()}  # fmt: skip


def score_text(log_likelihood: float, greedy: bool) -> Record:
  """Returns the scores of one continuation."""
  return {"log_likelihood": log_likelihood, "acc": float(greedy), "perplexity": log_likelihood}


def score_rolling(item: Item, log_likelihood: float) -> Record:
  """Returns the log-likelihood of a whole text, its words (between white space) and its UTF-8 bytes."""
  text = item.continuations[0]
  words, size = len(re.split(r"\s+", text)), len(text.encode())
  return {"log_likelihood": log_likelihood, "words": words, "bytes": size}


def labels(task: TaskFile, item: Item) -> Record:
  """Returns the pair of an item, and the values by which scores are reported.

  Raises:
    UserError: the item has not the fields.
  """
  pair, compare = task.metadata.get("pair"), task.metadata.get("compare", {}).get("field")
  fields = [*task.metadata.get("report_by", ()), *([compare] if compare else [])]
  if missing := [field for field in (pair, *fields) if field and field not in item.doc]:
    raise UserError(f"task {task.task}: item {item.number} has no {missing[0]!r}, which its metadata names")
  record: Record = {"pair": _plain(item.doc[pair])} if pair else {}
  return record | ({"by": {field: _plain(item.doc[field]) for field in fields}} if fields else {})


def _plain(value: Any) -> Any:
  return value if isinstance(value, str | int | float | None) else json.dumps(value, default=str)


def calibration_bins(records: Sequence[Record], bins: int = 10) -> list[tuple[float, float, int]]:
  """Returns (mean confidence, accuracy, items) of each bin of equal width that has items.

  The confidence is the probability of the predicted choice among the choices.
  """
  pairs = np.array([[record["confidence"], record["acc"]] for record in records], np.float64)
  where = np.minimum((pairs[:, 0] * bins).astype(int), bins - 1)
  parts = [pairs[where == i] for i in range(bins)]
  return [(float(part[:, 0].mean()), float(part[:, 1].mean()), len(part)) for part in parts if len(part)]


def _calibration_error(pairs: np.ndarray) -> float:
  """Returns sum over bins of items / all items * |accuracy - mean confidence| (Guo et al., 2017)."""
  where = np.minimum((pairs[:, 0] * 10).astype(int), 9)
  confidence = np.bincount(where, pairs[:, 0], 10) - np.bincount(where, pairs[:, 1], 10)
  return float(np.abs(confidence).sum() / len(pairs))


def _pairs(records: Sequence[Record]) -> np.ndarray:
  """Returns 1 for each pair whose items are all right, else 0."""
  right: dict[Any, float] = {}
  for record in records:
    right[record["pair"]] = min(right.get(record["pair"], 1.0), float(record["acc"] == 1))
  return np.array(list(right.values()), np.float64)[:, None]


def _mean(values: np.ndarray) -> float:
  return float(values.mean())


def _perplexity(values: np.ndarray) -> float:
  return math.exp(min(-float(values.mean()), 700.0))


def _per(unit: str) -> Callable[[np.ndarray], float]:
  def value(pairs: np.ndarray) -> float:
    nats = -float(pairs[:, 0].sum()) / max(float(pairs[:, 1].sum()), 1.0)
    return nats / math.log(2) if unit == "bits" else math.exp(min(nats, 700.0))

  return value


COLUMNS: dict[str, tuple[tuple[str, ...], Callable[[np.ndarray], float]]] = {
  "perplexity": (("perplexity",), _perplexity),
  "calibration_error": (("confidence", "acc"), _calibration_error),
  "word_perplexity": (("log_likelihood", "words"), _per("exp")),
  "byte_perplexity": (("log_likelihood", "bytes"), _per("exp")),
  "bits_per_byte": (("log_likelihood", "bytes"), _per("bits")),
  "bits_per_word": (("log_likelihood", "words"), _per("bits")),
  "bleu": (("bleu",), corpus_score("bleu")),
  "chrf": (("chrf",), corpus_score("chrf")),
}  # what a metric needs of each record, and its statistic; of others, the mean of the record's value


def _values(name: str, records: Sequence[Record]) -> tuple[np.ndarray, Callable[[np.ndarray], float]]:
  keys, statistic = COLUMNS.get(name, ((name,), _mean))
  if name == "acc_pair":
    return _pairs(records), _mean
  return np.array([[record[key] for key in keys] for record in records], np.float64), statistic


def summarise(task: TaskFile, records: Sequence[Record], resamples: int = 1000) -> dict[str, dict[str, float]]:
  """Returns {metric: {value, low, high}} of a task's items, with the limits of the 95 % bootstrap interval."""
  summary = {}
  for name in task.metrics():
    values, statistic = _values(name, records)
    low, high = interval(values, statistic, resamples)
    summary[name] = {"value": statistic(values), "low": low, "high": high}
  return summary


def difference(
  task: TaskFile, first: Sequence[Record], second: Sequence[Record], resamples: int = 1000
) -> dict[str, dict[str, float]]:
  """Returns {metric: {value, low, high}} of the first items minus the second, which are drawn independently."""
  summary = {}
  for name in task.metrics():
    (a, statistic), (b, _), rng = _values(name, first), _values(name, second), np.random.default_rng(SEED)
    draw = lambda values: statistic(values[rng.integers(0, len(values), len(values))])  # noqa: B023, E731
    low, high = np.percentile([draw(a) - draw(b) for _ in range(resamples)], [2.5, 97.5])
    summary[name] = {"value": statistic(a) - statistic(b), "low": float(low), "high": float(high)}
  return summary


def report_by(task: TaskFile, records: Sequence[Record], resamples: int = 1000) -> dict[str, dict[str, Any]]:
  """Returns {"field=value": {value, low, high, items}} of the accuracy, for the fields of `report_by`.

  With acc_pair, also over the pairs that have one value of the field.
  """
  report = {}
  for field in task.metadata.get("report_by", ()):
    for value in sorted({record["by"][field] for record in records}, key=str):
      right = np.array([record["acc"] for record in records if record["by"][field] == value])
      low, high = interval(right, _mean, resamples)
      report[f"{field}={value}"] = {"value": _mean(right), "low": low, "high": high, "items": len(right)}
      own = [record for record in records if record["by"][field] == value]
      others = {record["pair"] for record in records if record["by"][field] != value} if "pair" in own[0] else set()
      if "acc_pair" in task.metrics() and not others & {record["pair"] for record in own}:
        pairs = _pairs(own)
        low, high = interval(pairs, _mean, resamples)
        score = {"value": _mean(pairs), "low": low, "high": high, "items": len(pairs)}
        report[f"{field}={value}, all of a pair right"] = score
  if compare := task.metadata.get("compare"):
    field, names = compare["field"], (compare["first"], compare["second"])
    first, second = ([record for record in records if record["by"][field] == name] for name in names)
    report |= (
      {f"{field}: {names[0]} - {names[1]}": _compare(task, first, second, resamples)} if first and second else {}
    )
  return report


def _compare(task: TaskFile, first: Sequence[Record], second: Sequence[Record], resamples: int) -> dict[str, Any]:
  """Returns the difference of two accuracies: over pairs of items if the task has them, else of independent items."""
  if task.metadata.get("pair"):
    by_pair = {record["pair"]: record["acc"] for record in second}
    values = np.array([r["acc"] - by_pair[r["pair"]] for r in first if r["pair"] in by_pair], np.float64)
    if len(values):
      low, high = interval(values, _mean, resamples)
      return {"value": _mean(values), "low": low, "high": high, "items": len(values)}
  alike = dataclasses.replace(task, metric_list=({"metric": "acc"},))
  return difference(alike, first, second, resamples)["acc"] | {"items": len(first) + len(second)}


LOWER = {
  "perplexity",
  "word_perplexity",
  "byte_perplexity",
  "bits_per_byte",
  "bits_per_word",
  "calibration_error",
}  # is better


def across_templates(summaries: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, Any]]:
  """Returns {metric: {mean, spread, worst, best, values}} over the templates of a task.

  spread: the standard deviation between templates, with n - 1.
  """
  report = {}
  for name in summaries[0]:
    values = [summary[name]["value"] for summary in summaries]
    ends = (max(values), min(values)) if name in LOWER else (min(values), max(values))
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    report[name] = {"mean": _mean(np.array(values)), "spread": spread, "worst": ends[0], "best": ends[1],
                    "values": values}  # fmt: skip
  return report


def mean_of_tasks(name: str, tasks: Sequence[Sequence[Record]], resamples: int = 1000) -> dict[str, float]:
  """Returns the mean over tasks of a mean over items, and its interval: items are drawn within each task."""
  columns = [np.array([record[name] for record in records], np.float64) for records in tasks]
  rng = np.random.default_rng(SEED)
  sample = [np.mean([c[rng.integers(0, len(c), len(c))].mean() for c in columns]) for _ in range(resamples)]
  low, high = np.percentile(sample, [2.5, 97.5])
  return {"value": float(np.mean([c.mean() for c in columns])), "low": float(low), "high": float(high)}
