"""Metrics of downstream tasks: those of scikit-learn and SciPy, with intervals; rows of padding do not count."""

import types

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from lmjax.evals import task_metrics
from lmjax.evals.task_metrics import TaskMetrics
from lmjax.utils.errors import UserError

FUNCTIONS = {
  "accuracy": sk.accuracy_score, "f1": sk.f1_score, "matthews": sk.matthews_corrcoef,
  "macro_f1": lambda true, predicted: sk.f1_score(true, predicted, average="macro"),
  "pearson": lambda true, predicted: stats.pearsonr(true, predicted).statistic,
  "spearman": lambda true, predicted: stats.spearmanr(true, predicted).statistic,
  "mean_squared_error": sk.mean_squared_error,
}  # fmt: skip


def measure(monkeypatch, key, true, scores, rows=8, **options):
  """Metrics of scores [N, classes] of N rows with true values, in batches whose last rows are padding."""
  padding = -len(true) % rows
  real = np.arange(len(true) + padding) < len(true)
  true = np.concatenate([true, np.zeros(padding, true.dtype)])
  scores = np.concatenate([scores, np.full((padding, scores.shape[1]), 9.0)])
  parts = [slice(i, i + rows) for i in range(0, len(true), rows)]
  batches = [{key: true[p], "segments": real[p, None].astype(np.int32)} for p in parts]
  data = types.SimpleNamespace(validate=lambda tokenizer, batch: batches)
  context = types.SimpleNamespace(data=data, tokenizer=None, batch=rows, task=None, layout=None)
  monkeypatch.setattr(task_metrics, "row_scores", lambda *_: lambda params: [scores[p] for p in parts])
  return TaskMetrics(**options).prepare(context)({})


@pytest.mark.parametrize("classes", [2, 3])
def test_classes(classes, monkeypatch):
  rng = np.random.default_rng(0)
  for size in (5, 16, 61):
    true, scores = rng.integers(0, classes, size).astype(np.int32), rng.standard_normal((size, classes))
    scores[np.arange(size), true] += 1
    names = ("accuracy", "macro_f1", "matthews") + ("f1",) * (classes == 2)
    values = measure(monkeypatch, "labels", true, scores, metrics=names, resamples=50)
    majority = np.full(size, np.bincount(true).argmax())
    for name in names:
      np.testing.assert_allclose(values[name], FUNCTIONS[name](true, scores.argmax(1)), atol=1e-12)
      assert values[f"{name}_low"] <= values[name] + 0.05 and values[f"{name}_high"] >= values[name] - 0.05
    np.testing.assert_allclose(values["majority_accuracy"], sk.accuracy_score(true, majority))
    assert values["accuracy_low"] < values["accuracy_high"]
    forms = ("{}", "{}_low", "{}_high", "majority_{}")
    assert set(values) == {form.format(name) for name in names for form in forms}


@pytest.mark.parametrize("classes", [2, 4])
def test_metrics_of_counts_are_those_of_the_library(classes):
  """Also where a class is missing, or everything is of one class."""
  rng = np.random.default_rng(1)
  for size in (1, 2, 7, 40):
    for top in range(1, classes + 1):
      true, predicted = rng.integers(0, top, size), rng.integers(0, classes, size) * (size % 2)
      counts = np.zeros((1, classes, classes), int)
      np.add.at(counts[0], (true, predicted), 1)
      for name in task_metrics.CLASSES.keys() - ({"f1"} if classes > 2 else set()):
        expected = task_metrics.CLASSES[name](true, predicted)
        np.testing.assert_allclose(task_metrics.of_counts(name, counts), [expected], atol=1e-12, err_msg=name)


def test_numbers(monkeypatch):
  rng = np.random.default_rng(0)
  names = ("pearson", "spearman", "mean_squared_error")
  true = rng.standard_normal(37).astype(np.float32)
  scores = (true + 0.5 * rng.standard_normal(37))[:, None]
  values = measure(monkeypatch, "values", true, scores, metrics=names, resamples=50)
  for name in names:
    np.testing.assert_allclose(values[name], FUNCTIONS[name](true, scores[:, 0]), rtol=1e-5)
    assert values[f"{name}_low"] < values[name] < values[f"{name}_high"]
  constant = measure(monkeypatch, "values", true, np.zeros((37, 1)), metrics=names[:2], resamples=0)
  assert constant == {"pearson": 0.0, "spearman": 0.0}


def test_an_interval_covers_the_metric_as_often_as_it_says(monkeypatch):
  rng, covered = np.random.default_rng(0), 0
  for _ in range(100):
    right = rng.random(120) < 0.7
    scores = np.where(right[:, None], [[1.0, 0.0]], [[0.0, 1.0]])
    values = measure(monkeypatch, "labels", np.zeros(120, np.int32), scores, resamples=100)
    covered += values["accuracy_low"] <= 0.7 <= values["accuracy_high"]
  assert 85 <= covered <= 100


def test_metrics_of_another_kind_are_refused(monkeypatch):
  one, scores = np.zeros(4, np.int32), np.zeros((4, 2))
  with pytest.raises(UserError, match="spearman is not a metric of classes"):
    measure(monkeypatch, "labels", one, scores, metrics=("spearman",))
  with pytest.raises(UserError, match="f1 is not a metric of numbers"):
    measure(monkeypatch, "values", one.astype(np.float32), scores, metrics=("f1",))
  with pytest.raises(UserError, match="need rows with a label each"):
    measure(monkeypatch, "tags", one, scores)
  with pytest.raises(ValueError, match="did you mean 'accuracy'"):
    TaskMetrics(metrics=("acuracy",))
