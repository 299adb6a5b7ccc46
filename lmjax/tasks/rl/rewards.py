"""Rewards of answers: of a reward model, of a Python function, of a pattern."""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from typing import ClassVar

import jax
import numpy as np

from lmjax.data.batch import Batch
from lmjax.tasks.base import Frozen, FrozenModel
from lmjax.tasks.reward import RewardModel
from lmjax.tasks.rl.rollout import on_mesh, whole
from lmjax.utils.errors import UserError
from lmjax.utils.pytree import Tree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reward:
  """A part of the reward, which is the sum over parts of weight x score. name: of its metric."""

  negative: ClassVar = ("weight",)  # the fields that may be below 0 in a config

  weight: float = 1.0
  name: str = ""

  def frozen(self) -> Frozen | None:
    """Returns the model that it reads, if any."""
    return None

  def scores(self, model: FrozenModel | None, batches: Sequence[Batch], texts: "Texts") -> np.ndarray:
    """Returns the score of each answer [N].

    Args:
      model: that of `frozen`.
      batches: the rows of the rollout in equal parts, whole on every host.
      texts: makes the texts of prompts and answers.
    """
    raise NotImplementedError


Texts = Callable[[], list[tuple[str, str]]]  # (prompt, answer) of each row


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelReward(Reward):
  """The score of a reward model, which has the policy's tokenizer.

  path: a run of `RewardModel`. dtype: of its parameters and its computation. step: of the run, None for the latest.
  """

  path: str
  dtype: str = "float32"
  step: int | None = None

  def frozen(self) -> Frozen:
    return Frozen(self.path, self.dtype, self.step)

  def scores(self, model: FrozenModel | None, batches: Sequence[Batch], texts: Texts) -> np.ndarray:
    if model is None or not isinstance(model.task, RewardModel):
      raise UserError(f"config.task.rewards: {self.path} is not a run of a reward model")
    pairs = model.task.model.kind == "encoder_decoder"
    if any(pairs != ("decoder_inputs" in batch) for batch in batches):
      raise UserError(f"config.task.rewards: {self.path} and the policy must both be encoder-decoders, or neither")
    if model.task.model.kind == "encoder":
      batches = [_after(batch, model.task.start) for batch in batches]
    return np.concatenate([whole(_model_scores(model.task, model.params, on_mesh(batch))) for batch in batches])


def _after(batch: Batch, start: int) -> Batch:
  """Returns rows [N, 1 + L] of which the first token, [CLS], is at position 0, wherever the padding is."""
  before = {"inputs": start, "segments": 1, "positions": 0}
  rows = {key: np.pad(batch[key], ((0, 0), (1, 0)), constant_values=value) for key, value in before.items()}
  rows["positions"][:, 1:] += 1
  return rows


@functools.partial(jax.jit, static_argnums=0)
def _model_scores(task: RewardModel, params: Tree, batch: Batch) -> jax.Array:
  return task.forward(params, batch).logits[:, 0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FunctionReward(Reward):
  """What a Python function returns of the text of a prompt, as the chat template writes it, and of its answer."""

  function: Callable[[str, str], float]

  def scores(self, model: FrozenModel | None, batches: Sequence[Batch], texts: Texts) -> np.ndarray:
    return np.array([float(self.function(prompt, answer)) for prompt, answer in texts()], np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatternReward(Reward):
  """The fraction of an answer's characters that a regular expression matches; of an empty answer 0.

  So `[a-z]` asks for small letters, and `^[0-9]+$` gives 1 to a number and 0 to all else.
  """

  pattern: str

  def __post_init__(self):
    try:
      re.compile(self.pattern)
    except re.error as error:
      raise ValueError(f"pattern: {self.pattern!r} is not a regular expression: {error}") from error

  def scores(self, model: FrozenModel | None, batches: Sequence[Batch], texts: Texts) -> np.ndarray:
    answers = [answer for _, answer in texts()]
    matched = [sum(len(match[0]) for match in re.finditer(self.pattern, answer)) for answer in answers]
    return np.array([part / max(len(answer), 1) for part, answer in zip(matched, answers, strict=True)], np.float32)
