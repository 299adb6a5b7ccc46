"""Metrics of classification and regression, by scikit-learn and SciPy, with bootstrap intervals."""

import dataclasses
import warnings
from collections.abc import Callable, Sequence

import numpy as np

from lmjax.evals.base import Context, Measure
from lmjax.evals.bootstrap import SEED, limits
from lmjax.evals.row_scores import row_scores
from lmjax.utils.errors import UserError, did_you_mean
from lmjax.utils.pytree import Tree

try:
  from scipy import stats
  from sklearn import metrics as sk
except ImportError as error:
  raise UserError("the metrics of downstream tasks need scikit-learn and SciPy: pip install 'lmjax[tasks]'") from error

Metric = Callable[[np.ndarray, np.ndarray], float]  # of true and predicted values [N]

CLASSES: dict[str, Metric] = {
  "accuracy": sk.accuracy_score,
  "f1": lambda true, predicted: sk.f1_score(true, predicted, zero_division=0.0),  # of class 1
  "macro_f1": lambda true, predicted: sk.f1_score(true, predicted, average="macro", zero_division=0.0),
  # A sample of few rows may have a single class, of which scikit-learn warns.
  "matthews": lambda a, b: sk.matthews_corrcoef(a, b) if len(np.union1d(a, b)) > 1 else 0.0,
}
NUMBERS: dict[str, Metric] = {
  "pearson": lambda true, predicted: _correlation(stats.pearsonr, true, predicted),
  "spearman": lambda true, predicted: _correlation(stats.spearmanr, true, predicted),
  "mean_squared_error": sk.mean_squared_error,
}


def of_counts(name: str, counts_NxCxC: np.ndarray) -> np.ndarray:
  """Returns a metric of classes [N] from counts by true and by predicted class: scikit-learn takes 2 ms for each."""
  right_NxC, true_NxC, predicted_NxC = np.einsum("ncc->nc", counts_NxCxC), counts_NxCxC.sum(2), counts_NxCxC.sum(1)
  right, size, either_NxC = right_NxC.sum(1), true_NxC.sum(1), true_NxC + predicted_NxC
  if name == "accuracy":
    return right / size
  if name == "matthews":
    variances = [size**2 - (side**2).sum(1) for side in (true_NxC, predicted_NxC)]
    product = np.maximum(variances[0].astype(float) * variances[1], 1)  # where it is 0, so is the covariance
    return (right * size - (true_NxC * predicted_NxC).sum(1)) / np.sqrt(product)
  f1_NxC = 2 * right_NxC / np.maximum(either_NxC, 1)
  return f1_NxC[:, 1] if name == "f1" else f1_NxC.sum(1) / (either_NxC > 0).sum(1)


def _class_limits(name: str, true: np.ndarray, predicted: np.ndarray, resamples: int) -> dict[str, float]:
  """Returns `bootstrap.limits` of a metric of classes: how often a sample has each cell is multinomial."""
  classes = max(true.max(), predicted.max(), 1) + 1
  cells = np.bincount(true * classes + predicted, minlength=classes**2)
  sample = np.random.default_rng(SEED).multinomial(len(true), cells / len(true), resamples)
  ends = np.percentile(of_counts(name, sample.reshape(-1, classes, classes)), [2.5, 97.5])
  return {f"{name}_low": ends[0], f"{name}_high": ends[1]}


def _correlation(function: Callable, true: np.ndarray, predicted: np.ndarray) -> float:
  """Returns a correlation coefficient; 0 where one side is constant, as of a model that has not learned anything."""
  if np.ptp(true) == 0 or np.ptp(predicted) == 0:
    return 0.0
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", stats.NearConstantInputWarning)
    return float(function(true, predicted).statistic)


@dataclasses.dataclass(frozen=True)
class TaskMetrics:
  """Metrics of a task's predictions on all of its validation data.

  accuracy, f1 (of the second class), macro_f1, matthews for classes; pearson, spearman, mean_squared_error for numbers.
  Each has the limits of its 95 % bootstrap interval, `_low` and `_high`: the percentiles over `resamples` samples of
  the rows, with replacement (Efron, 1979). majority_...: the same of predicting the most frequent class of all.
  """

  metrics: tuple[str, ...] = ("accuracy",)
  resamples: int = 1000

  def __post_init__(self):
    for name in self.metrics:
      if name not in CLASSES | NUMBERS:
        raise ValueError(f"no metric {name!r}{did_you_mean(name, CLASSES | NUMBERS)}")
    if not self.metrics or self.resamples < 0:
      raise ValueError("name one metric at least; resamples is at least 0")

  def prepare(self, context: Context) -> Measure:
    batches = context.data.validate(context.tokenizer, context.batch)
    key = next((key for key in ("labels", "values") if key in batches[0]), None)
    known = {"labels": CLASSES, "values": NUMBERS}.get(key or "", {})
    if key is None or batches[0][key].ndim != 1:
      raise UserError("evals: task metrics need rows with a label each, as lmjax.data.objectives.labelled makes")
    for name in self.metrics:
      if name not in known:
        raise UserError(f"evals: {name} is not a metric of {'classes' if key == 'labels' else 'numbers'}")
    real = np.concatenate([batch["segments"][:, 0] for batch in batches]) > 0
    true = np.concatenate([batch[key] for batch in batches])[real]
    scores = row_scores(context.task, context.layout, batches)

    def measure(params: Tree) -> dict[str, float]:
      rows = np.concatenate(scores(params))[real]
      return compare(self.metrics, true, rows.argmax(axis=1) if key == "labels" else rows[:, 0], self.resamples)

    return measure


def compare(names: Sequence[str], true: np.ndarray, predicted: np.ndarray, resamples: int) -> dict[str, float]:
  """Returns metrics of classes (whole numbers) or of numbers, all [N], as `TaskMetrics` describes them."""
  values: dict[str, float] = {}
  every, classes = np.arange(len(true)), np.issubdtype(true.dtype, np.integer)
  for name in names:
    metric = lambda rows, of=(CLASSES | NUMBERS)[name]: of(true[rows], predicted[rows])  # noqa: E731
    values[name] = metric(every)
    if resamples and classes:
      values |= _class_limits(name, true, predicted, resamples)
    else:
      values |= limits(name, every, metric, resamples=resamples)
  if classes:
    majority = np.full_like(true, np.bincount(true).argmax())
    values |= {f"majority_{name}": CLASSES[name](true, majority) for name in names}
  return {name: float(value) for name, value in values.items()}
