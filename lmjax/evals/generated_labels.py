"""Metrics of labels that are generated as text, as T5 does every task."""

import dataclasses

import numpy as np

from lmjax.evals.base import Context, Measure
from lmjax.evals.generation import generate, pairs_of
from lmjax.evals.task_metrics import CLASSES, NUMBERS, compare
from lmjax.utils.errors import UserError, did_you_mean
from lmjax.utils.pytree import Tree


@dataclasses.dataclass(frozen=True)
class GeneratedLabels:
  """Generates the label of each validation pair greedily, and compares it with the true one.

  metrics, resamples: see `lmjax.evals.task_metrics:TaskMetrics`. labels: in the order of their numbers; by default
  those of the validation data, sorted. What is none of them counts as a wrong one, and what is not a number as 0.
  """

  metrics: tuple[str, ...] = ("accuracy",)
  labels: tuple[str, ...] = ()
  resamples: int = 1000

  def __post_init__(self):
    for name in self.metrics:
      if name not in CLASSES | NUMBERS:
        raise ValueError(f"no metric {name!r}{did_you_mean(name, CLASSES | NUMBERS)}")
    if not self.metrics or len({name in CLASSES for name in self.metrics}) > 1 or self.resamples < 0:
      raise ValueError("name one metric at least, all of classes or all of numbers; resamples is at least 0")

  def prepare(self, context: Context) -> Measure:
    pairs, sources = pairs_of(context)
    targets, classes = [pair.target.strip() for pair in pairs], self.metrics[0] in CLASSES
    labels = [label.strip() for label in self.labels] or sorted(set(targets))
    unknown = next((target for target in targets if classes and target not in labels), None)
    if unknown is not None:
      raise UserError(f"evals: the validation data has the label {unknown!r}, which is none of {', '.join(labels)}")
    true = np.array([labels.index(target) if classes else _number(target) for target in targets])
    new = context.data.shared()["target_length"]

    def measure(params: Tree) -> dict[str, float]:
      texts = [text.strip() for text in generate(context.task, context.tokenizer, params, sources, new)]
      predicted = np.array([
        (labels.index(text) if text in labels else (right + 1) % max(len(labels), 2)) if classes else _number(text)
        for text, right in zip(texts, true, strict=True)
      ])  # fmt: skip
      return compare(self.metrics, true, predicted, self.resamples)

    return measure


def _number(text: str) -> float:
  try:
    return float(text) if np.isfinite(float(text)) else 0.0
  except ValueError:
    return 0.0
