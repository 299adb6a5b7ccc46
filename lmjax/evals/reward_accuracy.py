"""How often a reward model ranks unseen answers as people did, beside baselines that read no prompt."""

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np

from lmjax.data.batch import Batch
from lmjax.data.objectives.preferences import Preferences
from lmjax.data.sources.base import BadRecord
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.evals.base import Context, Measure
from lmjax.evals.bootstrap import interval, limits
from lmjax.evals.row_scores import row_scores
from lmjax.tasks.preferences import segments_of
from lmjax.tasks.reward import RewardModel
from lmjax.utils.errors import UserError
from lmjax.utils.pytree import Tree

TRAINING_GROUPS = 5000  # of the training data, from which the unigram baseline is counted


@dataclasses.dataclass(frozen=True)
class RewardAccuracy:
  """Accuracy of a reward model on all pairs of the validation data, with 95 % bootstrap intervals over their groups.

    loss = mean over groups of the mean over pairs of -log sigmoid(d),  d = r(better) - r(worse)
    calibration_error = sum over bins of fraction * |accuracy - mean confidence|,  confidence = sigmoid(|d|)

  length_accuracy: of preferring the longer answer. unigram_accuracy: of preferring the answer whose tokens are more
  frequent in better than in worse answers of the training data, sum over tokens of log of the ratio of smoothed
  frequencies. gain: accuracy minus that of the better baseline. A tie counts one half.

  resamples: of the bootstrap. bins: of equal width, of confidence (Guo et al., 2017, arXiv:1706.04599).
  """

  resamples: int = 1000
  bins: int = 10

  def __post_init__(self):
    if self.resamples < 0 or self.bins < 1:
      raise ValueError("resamples is at least 0, and bins at least 1")

  def prepare(self, context: Context) -> Measure:
    task, data = context.task, context.data
    if not isinstance(task, RewardModel) or not isinstance(data, Preferences):
      raise UserError("evals: RewardAccuracy needs lmjax.tasks.reward:RewardModel, on preferences")
    batches = data.validate(context.tokenizer, context.batch)
    ratios_V = unigram_ratios(data, context.tokenizer)
    baselines = [[batch["weights"], batch["weights"] * ratios_V[batch["targets"]]] for batch in batches]
    groups = list(pairs_of_groups(task, batches))
    rows = row_scores(task, context.layout, batches)

    def differences(values: list[np.ndarray]) -> list[np.ndarray]:
      """Returns the better value minus the worse one, of the pairs of each group."""
      return [np.array([values[b][row, i] - values[b][row, j] for i, j in pairs]) for b, row, pairs in groups]

    lengths, unigrams = (
      differences([sums(task, batch, own[k]) for batch, own in zip(batches, baselines, strict=True)]) for k in range(2)
    )

    def measure(params: Tree) -> dict[str, float]:
      rewards = differences(rows(params))
      right_Gx3 = np.array([[right(own[g]) for own in (rewards, lengths, unigrams)] for g in range(len(groups))])
      names = ("accuracy", "length_accuracy", "unigram_accuracy")
      values = {"loss": float(np.mean([np.mean(np.logaddexp(0, -d)) for d in rewards]))}
      values |= dict(zip(names, map(float, right_Gx3.mean(0)), strict=True))
      values |= limits("accuracy", right_Gx3[:, 0], np.mean, self.resamples)
      values["gain"] = gain(right_Gx3)
      if self.resamples:
        values["gain_low"], values["gain_high"] = interval(right_Gx3, gain, self.resamples)
      return values | {"calibration_error": self.calibration_error(np.concatenate(rewards))}

    return measure

  def calibration_error(self, differences: np.ndarray) -> float:
    """Returns the expected calibration error of sigmoid(|d|) as the probability that d has the right sign."""
    confidence = 1 / (1 + np.exp(-np.abs(differences)))
    numbers = np.minimum(((confidence - 0.5) * 2 * self.bins).astype(int), self.bins - 1)
    of_bins = (numbers == i for i in range(self.bins))
    return float(
      sum(own.mean() * abs((differences[own] > 0).mean() - confidence[own].mean()) for own in of_bins if own.any())
    )


def right(differences: np.ndarray) -> float:
  """Returns the fraction of pairs that are ranked right; a tie counts one half."""
  return float(np.mean((1 + np.sign(differences)) / 2, dtype=np.float64))


def gain(right_Gx3: np.ndarray) -> float:
  """Returns the accuracy of the model minus that of the better baseline."""
  model, *baselines = right_Gx3.mean(0)
  return float(model - max(baselines))


def sums(task: RewardModel, batch: Batch, values_BxL: np.ndarray) -> np.ndarray:
  """Returns the sum of values over the tokens of each answer [B, groups * answers]."""
  numbers = np.arange(1, 1 + task.groups * task.answers)
  return np.einsum("bln,bl->bn", segments_of(batch)[..., None] == numbers, values_BxL)


def pairs_of_groups(task: RewardModel, batches: list[Batch]) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
  """Yields the batch, the row and the pairs of answers of each group, numbered as segments from 0, the better first."""
  for b, batch in enumerate(batches):
    for row, segments in enumerate(segments_of(batch)):
      there = {int(segment) - 1 for segment in np.unique(segments)}
      for group in range(task.groups):
        answers = [n for n in range(group * task.answers, (group + 1) * task.answers) if n in there]
        if len(answers) > 1:
          yield b, row, list(itertools.combinations(answers, 2))


def unigram_ratios(data: Preferences, tokenizer: Tokenizer) -> np.ndarray:
  """Returns log p(token | better answer) - log p(token | worse answer) of the training data, add-one smoothed [V]."""
  documents = data.documents(data.source, tokenizer, None, 1)
  counts = np.ones((2, tokenizer.size))
  for i in range(min(len(data.source), TRAINING_GROUPS)):
    encoded = documents.encode(data.source[i])
    if not isinstance(encoded, BadRecord):
      for rank, (ids, answer) in enumerate(encoded[0]):
        np.add.at(counts[min(rank, 1)], ids[answer], 1)
  logs = np.log(counts / counts.sum(axis=1, keepdims=True))
  return logs[0] - logs[1]
