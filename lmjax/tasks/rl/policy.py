"""What tasks share that learn from their own answers: writing them, scoring them, and the order of updates."""

import dataclasses
import functools
import time
from collections.abc import Iterable, Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.data.batch import Batch
from lmjax.data.objectives.prompts import AnswerText
from lmjax.models.base import GENERATES, Table
from lmjax.tasks.base import Base, Collected, Frozen, FrozenModel, Spec
from lmjax.tasks.reference import WithReference
from lmjax.tasks.rl.advantages import last_tokens, masked_mean
from lmjax.tasks.rl.log_probs import answer_log_probs
from lmjax.tasks.rl.rewards import Reward
from lmjax.tasks.rl.rollout import Rollout, on_mesh, whole, write_answers
from lmjax.utils.errors import UserError
from lmjax.utils.pytree import Tree

Arrays = dict[str, np.ndarray]
SCALE = ("reward_mean", "reward_deviation")  # of the rewards of the first rollout


@dataclasses.dataclass(frozen=True)
class Policy(WithReference):
  """A policy that learns from rewards of the answers that it writes to prompts.

  Each step of data is a rollout: `samples` answers to each prompt of the batch, scored, and learned from in `epochs`
  passes of `minibatches` updates. Log-probabilities of the policy that wrote them are those of the trainer's own
  forward pass, so that ratios are 1 at the first update.

  rewards: their weighted sum is the reward of an answer. normalise: the mean and the deviation of the first rollout's
  rewards, which the policy at the start wrote, become 0 and 1; checkpoints keep them. temperature: of sampling, which
  also divides the scores in training. unfinished: the reward of an answer without an end token, after that; None leaves
  it to the rewards. answer_tokens: of an answer, at most. text: how answers are read. The data sets the last two.
  """

  negative: ClassVar = ("unfinished",)  # the fields that may be below 0 in a config

  rewards: tuple[Reward, ...] = ()
  normalise: bool = False
  temperature: float = 1.0
  samples: int = 1
  minibatches: int = 1
  epochs: int = 1
  unfinished: float | None = None
  answer_tokens: int = 1
  text: AnswerText | None = None

  collects = True

  def __post_init__(self):
    if self.model.kind not in GENERATES:
      raise ValueError(f"answers are written by decoders and encoder-decoders, not by the kind {self.model.kind!r}")
    if not self.temperature > 0:
      raise ValueError(f"temperature must be above 0, not {self.temperature}")
    if min(self.samples, self.minibatches, self.epochs) < 1:
      raise ValueError("samples, minibatches and epochs must be at least 1")
    if not self.rewards:
      raise ValueError("rewards: name at least one, such as lmjax.tasks.rl.rewards:ModelReward")

  def experience_keys(self) -> tuple[str, ...]:
    """Returns the keys [N, T] of a batch that `experience` adds to the rows of a rollout."""
    raise NotImplementedError

  def experience(
    self, carry: Tree, rollout: Rollout, measured: Arrays, scores: np.ndarray
  ) -> tuple[Arrays, dict[str, float]]:
    """Returns what is learned from each token [N, T], by the keys of `experience_keys`, and metrics.

    Args:
      measured: of the tokens of the answers [N, T], see `measure`.
      scores: the reward of each answer [N].
    """
    raise NotImplementedError

  def minibatch(self, rows: Batch) -> Batch:
    """Returns a minibatch as it is learned from; by default as it is."""
    return rows

  def measure(self, params: Tree, frozen: Mapping[str, FrozenModel], batch: Batch) -> dict[str, jax.Array]:
    """Returns what is measured of the tokens of answers before the first update, each [B, T].

    The program that reads the policy reads the reference, too: equal parameters have equal bits. Without a reference
    there is no `reference_log_probs`.
    """
    x, log_probs, entropy = _read(self, params, batch, self)
    measured = {"old_log_probs": log_probs, "entropy": entropy} | _measure(self, params, dict(frozen), x, batch)
    reference = self.reference_model(params, frozen)
    return measured | ({"reference_log_probs": _read(self, reference[1], batch, reference[0])[1]} if reference else {})

  def measure_vectors(
    self, params: Tree, frozen: Mapping[str, FrozenModel], x: jax.Array, batch: Batch
  ) -> dict[str, jax.Array]:
    """Returns what else is measured [B, T], given the vectors [B, T, D] that predict the tokens."""
    return {}

  def frozen(self) -> dict[str, Frozen]:
    models = {f"reward_{i}": reward.frozen() for i, reward in enumerate(self.rewards)}
    return super().frozen() | {name: model for name, model in models.items() if model}

  def spec(self, batch: int, length: int) -> Spec:
    rows = max(batch * self.samples // self.minibatches, 1)
    read = {"": length}  # tokens that encoder and decoder read, see `Rollout.rows`
    if self.model.kind == "encoder_decoder":
      read = {"": length - self.answer_tokens, "decoder_": 1 + self.answer_tokens}
    shapes = {part + key: (rows, read[part]) for part in read for key in ("inputs", "positions", "segments")}
    spec = {key: jax.ShapeDtypeStruct(shape, jnp.int32) for key, shape in shapes.items()}
    per_token = {"targets": jnp.int32} | dict.fromkeys(("weights", *self.experience_keys()), jnp.float32)
    spec |= {key: jax.ShapeDtypeStruct((rows, self.answer_tokens), dtype) for key, dtype in per_token.items()}
    return spec | {key: jax.ShapeDtypeStruct((rows,), jnp.float32) for key in (SCALE if self.normalise else ())}

  def initial_carry(self, batch: int) -> Tree:
    return {key: jnp.zeros(()) for key in (SCALE if self.normalise else ())}  # a deviation of 0: not known yet

  def next_carry(self, carry: Tree, batch: Batch) -> Tree:
    """Returns the carry with the scale of rewards, which is the same in all rows."""
    return carry | {key: batch[key][0] for key in (SCALE if self.normalise else ())}

  def reads(self, batch: int, length: int) -> Spec:
    kinds = {"inputs": jnp.int32, "segments": jnp.int32, "weights": jnp.float32}
    return {key: jax.ShapeDtypeStruct((batch, length), dtype) for key, dtype in kinds.items()}

  def scored(self, params: Tree, batch: Batch, rng: jax.Array | None = None) -> tuple[jax.Array, Table, jax.Array]:
    return self.hidden(params, batch, rng=rng).tokens, self.model.unembedding(params["model"]), batch["targets"]

  def policy(self, params: Tree, batch: Batch, rng: jax.Array | None = None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns `score_tokens` of the policy."""
    x, table, _ = self.scored(params, batch, rng)
    return self.score_tokens(x, table, batch)

  def answer_vectors(self, x_BxLxD: jax.Array) -> jax.Array:
    """Returns the vectors [B, T, D] that predict the tokens of answers: those of the tokens before them."""
    return x_BxLxD[:, -self.answer_tokens - 1 : -1]

  def score_tokens(self, x_BxLxD: jax.Array, table: Table, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns `answer_vectors`, and log p of the tokens of answers and the entropy [B, T], which are 0 on padding."""
    x, there = self.answer_vectors(x_BxLxD), batch["weights"] > 0
    vocabulary = self.model.config.vocabulary
    log_probs, entropy = answer_log_probs(x, table, batch["targets"], vocabulary, self.temperature)
    return x, jnp.where(there, log_probs, 0), jnp.where(there, entropy, 0)

  def rollout(self, params: Tree, prompts: Batch, rng: jax.Array, samples: int | None = None) -> Rollout:
    """Returns answers to each prompt, those to one prompt after each other.

    Args:
      params: as the model sees them.
      prompts: whole on every host.
      samples: answers to a prompt, by default those of training.
    """
    assert self.text is not None, "the data sets it"
    repeated = {key: np.repeat(value, samples or self.samples, axis=0) for key, value in prompts.items()}
    seeds = np.asarray(jax.random.bits(rng, (len(repeated["inputs"]),), jnp.uint32))
    text, tokens = self.text, self.answer_tokens
    return write_answers(
      self.model, self.compute(params), repeated, seeds, tokens, self.temperature, text.ends, text.start
    )

  def texts(self, rollout: Rollout) -> list[tuple[str, str]]:
    """Returns the text of each prompt and of its answer."""
    assert self.text is not None
    decode = self.text.decode
    pairs = zip(rollout.prompts, rollout.valid, rollout.answers, strict=True)
    return [(decode(prompt[valid]), decode(answer[answer >= 0])) for prompt, valid, answer in pairs]

  def score(
    self, frozen: Mapping[str, FrozenModel], rollout: Rollout, rows: int
  ) -> tuple[np.ndarray, dict[str, float]]:
    """Returns the sum of the rewards of each answer [N], and metrics: the mean of each part.

    Args:
      rows: that a model scores at a time.
    """
    texts = functools.cache(lambda: self.texts(rollout))
    batches, total, means = split(rollout.rows(), rows), np.zeros(len(rollout.answers), np.float32), {}
    for i, reward in enumerate(self.rewards):
      scores = reward.scores(frozen.get(f"reward_{i}"), batches, texts)
      if not np.isfinite(scores).all():
        raise UserError(f"config.task.rewards: {int((~np.isfinite(scores)).sum())} scores of part {i} are not finite")
      means[f"reward_{reward.name or i}"] = float(scores.mean())
      total += reward.weight * scores
    return total, means if len(means) > 1 else {}

  def final_scores(self, scores: np.ndarray, rollout: Rollout, mean: float = 0.0, deviation: float = 1.0) -> np.ndarray:
    """Returns the rewards that are learned from [N]: scaled, and those of unfinished answers replaced."""
    assert self.text is not None
    scores = ((scores - mean) / deviation).astype(np.float32)
    if self.unfinished is None:
      return scores
    return np.where(rollout.finished(self.text.ends), scores, np.float32(self.unfinished))

  def collect(
    self, params: Tree, frozen: Mapping[str, FrozenModel], carry: Tree, batch: Batch, rng: jax.Array
  ) -> Iterable[Collected]:
    assert self.text is not None
    writing, order = jax.random.split(rng)
    start = time.monotonic()
    rollout = self.rollout(params, whole(batch), writing)
    written = time.monotonic()
    rows, updates = rollout.rows(), len(rollout.answers) // self.minibatches
    if updates * self.minibatches != len(rollout.answers):
      raise UserError(f"config.task.minibatches: {self.minibatches} do not divide {len(rollout.answers)} answers")
    scores, parts = self.score(frozen, rollout, updates)
    measured = [whole(self.measure(params, frozen, on_mesh(part))) for part in split(rows, updates)]
    joined = {key: np.concatenate([part[key] for part in measured]) for key in measured[0]}
    mask, scale = rollout.mask, {}
    if self.normalise:
      known = {key: float(value) for key, value in whole({key: carry[key] for key in SCALE}).items()}
      own = dict(zip(SCALE, (float(scores.mean()), max(float(scores.std()), 1e-6)), strict=True))
      scale = known if known["reward_deviation"] else own
    final = self.final_scores(scores, rollout, scale.get("reward_mean", 0.0), scale.get("reward_deviation", 1.0))
    experience, metrics = self.experience(carry, rollout, joined, final)
    metrics |= parts | {
      "reward": float(scores.mean()),
      "entropy": masked_mean(joined["entropy"], mask),
      "answer_tokens": float(mask.sum(axis=1).mean()),
      "finished": float(rollout.finished(self.text.ends).mean()),
      "prompts": float(len(rows["inputs"]) // self.samples),
      "generated_tokens": float(mask.sum()),
      "rollout_seconds": written - start,
      "scoring_seconds": time.monotonic() - written,
    }
    rows |= experience | {key: np.full(len(mask), value, np.float32) for key, value in scale.items()}
    keys = self.spec(1, rows["inputs"].shape[1])
    for epoch in jax.random.split(order, self.epochs):
      shuffled = np.asarray(jax.random.permutation(epoch, len(mask)))
      for own in np.split(shuffled, self.minibatches):
        part = self.minibatch({key: rows[key][own] for key in keys if key in rows})
        yield Collected(on_mesh(part), metrics)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _read(task: Policy, params: Tree, batch: Batch, of: Base) -> tuple[jax.Array, jax.Array, jax.Array]:
  x, table, _ = of.scored(params, batch)
  return task.score_tokens(x, table, batch)


@functools.partial(jax.jit, static_argnums=0)
def _measure(
  task: Policy, params: Tree, frozen: dict[str, FrozenModel], x: jax.Array, batch: Batch
) -> dict[str, jax.Array]:
  return task.measure_vectors(params, frozen, x, batch)


def split(batch: Batch, rows: int) -> list[Batch]:
  """Returns a batch in parts of some rows."""
  return [{key: value[i : i + rows] for key, value in batch.items()} for i in range(0, len(batch["inputs"]), rows)]


def at_end(scores: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """Returns rewards [N, T] that are the score of an answer at its last token, and 0 elsewhere."""
  return scores[:, None] * last_tokens(mask)


def reference_of(measured: Arrays) -> np.ndarray:
  """Returns the log-probabilities of the reference [N, T]: those of the policy where there is none."""
  return measured.get("reference_log_probs", measured["old_log_probs"])
