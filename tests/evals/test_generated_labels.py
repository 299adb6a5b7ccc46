"""Labels that are generated as text: metrics as of classes, and what counts as wrong."""

import types

import numpy as np
import pytest

from lmjax.data.sources.pair import Pair
from lmjax.evals import generated_labels
from lmjax.evals.generated_labels import GeneratedLabels
from lmjax.utils.errors import UserError


def measured(monkeypatch, true, written, **settings):
  pairs = [Pair(f"text {i}", label) for i, label in enumerate(true)]
  monkeypatch.setattr(generated_labels, "pairs_of", lambda context: (pairs, [[i] for i in range(len(pairs))]))
  monkeypatch.setattr(generated_labels, "generate", lambda task, tokenizer, params, sources, new: written)
  data = types.SimpleNamespace(shared=lambda: {"target_length": 8})
  context = types.SimpleNamespace(data=data, tokenizer=None, task=None)
  return GeneratedLabels(**settings).prepare(context)({})


def test_a_text_that_is_no_label_is_wrong(monkeypatch):
  true, written = ["no", "yes", "yes", "no"], ["no", " yes", "perhaps", "perhaps"]
  scores = measured(monkeypatch, true, written, metrics=("accuracy", "f1"), labels=("no", "yes"))
  # Predicted: 0, 1, 0, 1 of the true 0, 1, 1, 0.
  assert scores["accuracy"] == 0.5 and scores["f1"] == 0.5 and scores["majority_accuracy"] == 0.5
  assert scores["accuracy_low"] < 0.5 < scores["accuracy_high"]
  three = measured(monkeypatch, ["a", "b", "c"], ["a", "x", "c"], metrics=("accuracy", "macro_f1"))
  assert three["accuracy"] == pytest.approx(2 / 3)


def test_numbers_are_compared_as_numbers(monkeypatch):
  true, written = ["1.0", "2.2", "3.4", "0.0"], ["1.2", "2.2", "3.0", "none"]
  scores = measured(monkeypatch, true, written, metrics=("pearson", "spearman"), resamples=0)
  assert scores["spearman"] == pytest.approx(1.0) and "majority_spearman" not in scores
  np.testing.assert_allclose(scores["pearson"], np.corrcoef([1, 2.2, 3.4, 0], [1.2, 2.2, 3.0, 0])[0, 1])


def test_settings_are_checked(monkeypatch):
  for wrong, words in ((dict(metrics=("f2",)), "no metric 'f2'"), (dict(metrics=("f1", "pearson")), "all of numbers")):
    with pytest.raises(ValueError, match=words):
      GeneratedLabels(**wrong)
  with pytest.raises(UserError, match="has the label 'maybe', which is none of no, yes"):
    measured(monkeypatch, ["maybe", "no"], ["no", "no"], labels=("no", "yes"))
