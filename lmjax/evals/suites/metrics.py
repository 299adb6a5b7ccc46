"""Scores of items and of tasks, as lm-evaluation-harness defines them, with bootstrap intervals."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lmjax.evals.bootstrap import interval
from lmjax.evals.suites.items import Item
from lmjax.evals.suites.task_files import TaskFile

Record = dict[str, Any]  # what the JSONL file of a task has of an item


def score_choices(item: Item, log_likelihoods: Sequence[float]) -> Record:
  """Returns which choice is the most likely, as it is, by character and by UTF-8 byte, and whether it is right.

  acc: argmax log p(choice);  acc_norm: argmax log p(choice) / characters;  acc_bytes: the same by bytes
  """
  values = np.asarray(log_likelihoods, np.float64)
  lengths = {
    "acc": np.ones(len(values)),
    "acc_norm": np.array([max(len(choice), 1) for choice in item.choices]),
    "acc_bytes": np.array([max(len(choice.encode()), 1) for choice in item.choices]),
  }
  predicted = {name: int(np.argmax(values / length)) for name, length in lengths.items()}
  scaled = np.exp(values - values.max())
  probabilities = scaled / scaled.sum()
  return {
    "log_likelihoods": values.tolist(), "predicted": predicted["acc"], "target": list(item.target),
    "confidence": float(probabilities.max()),
  } | {name: float(choice in item.target) for name, choice in predicted.items()}  # fmt: skip


def score_text(item: Item, log_likelihood: float, greedy: bool) -> Record:
  """Returns the scores of one continuation."""
  return {"log_likelihood": log_likelihood, "acc": float(greedy), "perplexity": log_likelihood}


def score_rolling(item: Item, log_likelihood: float) -> Record:
  """Returns the log-likelihood of a whole text, its words (between white space) and its UTF-8 bytes."""
  text = item.continuations[0]
  words, size = len(re.split(r"\s+", text)), len(text.encode())
  return {"log_likelihood": log_likelihood, "words": words, "bytes": size}


def score_answer(item: Item, answer: str, options: Mapping[str, Any]) -> Record:
  """Returns whether a generated answer is one of the right ones, both normalised by the options of `exact_match`."""
  normalised = _normalise(answer, options)
  return {"answer": answer, "exact_match": float(normalised in [_normalise(t, options) for t in item.target])}


def _normalise(text: str, options: Mapping[str, Any]) -> str:
  for pattern in options.get("regexes_to_ignore", ()):
    text = re.sub(pattern, "", text)
  if options.get("ignore_case"):
    text = text.lower()
  if options.get("ignore_punctuation"):
    text = re.sub(r"[!-/:-@\[-`{-~]", "", text)
  return text


def _mean(values: np.ndarray) -> float:
  return float(values.mean())


def _perplexity(values: np.ndarray) -> float:
  return math.exp(min(-float(values.mean()), 700.0))


def _per(unit: str) -> Callable[[np.ndarray], float]:
  def value(pairs: np.ndarray) -> float:
    nats = -float(pairs[:, 0].sum()) / max(float(pairs[:, 1].sum()), 1.0)
    return nats / math.log(2) if unit == "bits" else math.exp(min(nats, 700.0))

  return value


def summarise(task: TaskFile, records: Sequence[Record], resamples: int = 1000) -> dict[str, dict[str, float]]:
  """Returns {metric: {value, low, high}} of a task's items, with the limits of the 95 % bootstrap interval."""
  columns: dict[str, tuple[tuple[str, ...], Callable[[np.ndarray], float]]] = {
    "perplexity": (("perplexity",), _perplexity),
    "word_perplexity": (("log_likelihood", "words"), _per("exp")),
    "byte_perplexity": (("log_likelihood", "bytes"), _per("exp")),
    "bits_per_byte": (("log_likelihood", "bytes"), _per("bits")),
  }
  summary = {}
  for name in task.metrics():
    keys, statistic = columns.get(name, ((name,), _mean))
    values = np.array([[record[key] for key in keys] for record in records], np.float64)
    low, high = interval(values, statistic, resamples)
    summary[name] = {"value": statistic(values), "low": low, "high": high}
  return summary
