"""Accuracy of reward models: pairs of groups, baselines, intervals and calibration."""

import numpy as np
import pytest

from lmjax.data.chat.template import Message
from lmjax.data.objectives.preferences import Preferences
from lmjax.data.sources.preferences import Preference
from lmjax.data.tokenizers.registry import TokenizerConfig
from lmjax.evals import reward_accuracy
from lmjax.evals.base import Context
from lmjax.evals.reward_accuracy import RewardAccuracy
from lmjax.parallel.mesh import MeshShape
from lmjax.parallel.sharding import Layout
from lmjax.tasks.causal_lm import CausalLM
from lmjax.tasks.reward import RewardModel
from lmjax.testing import tiny_decoder
from lmjax.utils.errors import UserError

PROMPT = (Message("user", "say it"),)
# In the training data, better answers have a and worse ones b; in the validation data, three of four better ones do.
TRAIN = [("aaa a a", "bb b"), ("aa", "b b b b")] * 3
VALID = [("a a a", "b b"), ("aa a", "bbb bb b b b b b b b"), ("b b b b b", "a"), ("a a", "b", "bb b b b b")]


def context_of(kind=RewardModel):
  def source(texts):
    return [Preference(PROMPT, answers, str(i)) for i, answers in enumerate(texts)]

  data = Preferences(source(TRAIN), source(VALID), 192, TokenizerConfig("bpe", 280), answers=3, groups=2)
  tokenizer = data.make_tokenizer()
  task = kind(tiny_decoder(vocabulary=tokenizer.size, length=192), **(data.shared() if kind is RewardModel else {}))
  return Context(task, data, tokenizer, 2, Layout.build(MeshShape().build(), "ddp"))


def measure(monkeypatch, reward, **settings):
  """Returns the values, where the reward of an answer is a function of its text."""
  context = context_of()

  def row_scores(task, layout, batches):
    def scores(params):
      made = []
      for batch in batches:
        values = np.full((len(batch["inputs"]), task.groups * task.answers), np.nan)
        for row, n in np.ndindex(*values.shape):
          own = (batch["segments"][row] == n + 1) & (batch["weights"][row] > 0)
          if own.any():
            text = context.tokenizer.decode(batch["targets"][row][own])
            values[row, n] = reward(text.removesuffix("<|im_end|>"))
        made.append(values)
      return made

    return scores

  monkeypatch.setattr(reward_accuracy, "row_scores", row_scores)
  return RewardAccuracy(**settings).prepare(context)({})


def test_accuracy_is_that_of_groups_beside_the_baselines(monkeypatch):
  texts = [text for answers in VALID for text in answers]
  values = measure(monkeypatch, lambda text: 3.0 * texts.index(text) if "a" in text else -1.0)
  order = [[3.0 * texts.index(t) if "a" in t else -1.0 for t in answers] for answers in VALID]
  d = [[o[i] - o[j] for i in range(len(o)) for j in range(i + 1, len(o))] for o in order]
  wanted = [np.mean([1.0 if x > 0 else 0.5 if x == 0 else 0.0 for x in own]) for own in d]
  np.testing.assert_allclose(values["accuracy"], np.mean(wanted))
  np.testing.assert_allclose(values["loss"], np.mean([np.mean(np.log1p(np.exp(-np.array(own)))) for own in d]))
  assert 0.5 < values["unigram_accuracy"] < 1 and 0 < values["length_accuracy"] < 1
  assert values["accuracy_low"] <= values["accuracy"] <= values["accuracy_high"]
  best = max(values["unigram_accuracy"], values["length_accuracy"])
  np.testing.assert_allclose(values["gain"], values["accuracy"] - best)
  assert values["gain_low"] <= values["gain"] <= values["gain_high"]


def test_a_reward_that_is_the_length_has_its_accuracy(monkeypatch):

  context = context_of()
  values = measure(monkeypatch, lambda text: len(context.tokenizer.encode(text)), resamples=0)
  assert values["accuracy"] == values["length_accuracy"] and values["gain"] <= 0 and "gain_low" not in values


def test_calibration():
  rng = np.random.default_rng(0)
  sizes = rng.exponential(2, 20_000)
  confidence = 1 / (1 + np.exp(-sizes))
  calibrated = np.where(rng.random(len(sizes)) < confidence, sizes, -sizes)
  assert RewardAccuracy().calibration_error(calibrated) < 0.02
  np.testing.assert_allclose(RewardAccuracy().calibration_error(-sizes), confidence.mean(), rtol=1e-6)


def test_other_tasks_are_refused():
  with pytest.raises(UserError, match="needs lmjax.tasks.reward:RewardModel"):
    RewardAccuracy().prepare(context_of(CausalLM))
  with pytest.raises(ValueError):
    RewardAccuracy(bins=0)
