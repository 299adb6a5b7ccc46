"""Distillation: a student learns any task from its targets and from what a trained model, the teacher, computes."""

import copy
import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmjax.data.batch import Batch
from lmjax.layers.einsum import Einsum
from lmjax.models.base import Hidden, Table
from lmjax.tasks import divergences
from lmjax.tasks.base import Base, Frozen, FrozenModel, Outputs, Spec, Task
from lmjax.utils import pytree
from lmjax.utils.errors import UserError
from lmjax.utils.metrics import Mean
from lmjax.utils.pytree import Tree

TEACHER, PROJECTION = "teacher", "projection"
PARTS = ("soft", "hidden", "attention", "values")  # of what is learned from a teacher


@dataclasses.dataclass(frozen=True)
class Distill(Base):
  """A task with a teacher.

    loss = hard_weight * loss of the task + soft_weight * T^2 KL(p_teacher || p_student)
         + hidden_weight * distance of hidden states + attention_weight * distance of attention maps
         + values_weight * KL of value relations, see `divergences.relations`

  p = softmax(scores / T), T the temperature (Hinton et al., 2015, arXiv:1503.02531): of the words at each token that
  the task scores, or of a head's classes; of a number, the squared difference. hidden: `cosine`, 1 - cos(h, h') (Sanh
  et al., 2019, arXiv:1910.01108), or `mse`, |h - h'|^2 / D (Jiao et al., 2020, arXiv:1909.10351). attention: `kl`,
  KL(A' || A) of each query (Wang et al., 2020, arXiv:2002.10957), or `mse`, |A - A'|^2 / L. Both are means over tokens
  that are not padding and over pairs of layers, of the decoder where there is one.

  task: what is learned, any task without a memory of its own. teacher: a saved model that reads the same tokens and has
  the heads of the task. layer_map: the teacher's layer that each layer of the student is compared with, counted from 0,
  -1 for none; by default evenly spaced, the last with the last. teacher_width: where it is not the student's, whose
  vectors are then multiplied by a learned matrix, the head `projection`. chunk: tokens of a row whose words are scored
  at a time, a divisor of the length; 0 is all.
  """

  task: Base
  teacher: Frozen
  temperature: float = 1.0
  hard_weight: float = 1.0
  soft_weight: float = 1.0
  hidden_weight: float = 0.0
  attention_weight: float = 0.0
  values_weight: float = 0.0
  hidden_distance: str = "cosine"
  attention_distance: str = "kl"
  layer_map: tuple[int, ...] = ()
  teacher_width: int = 0
  chunk: int = 0
  negative: ClassVar = ("layer_map",)  # the fields that may be below 0 in a config

  def __post_init__(self):
    if self.task.model is not self.model:  # a copy with another model
      object.__setattr__(self, "task", dataclasses.replace(self.task, model=self.model))
    if not self.temperature > 0:
      raise ValueError(f"temperature is above 0, not {self.temperature}")
    weights = [getattr(self, f"{name}_weight") for name in ("hard", *PARTS)]
    if not min(weights) >= 0 or not max(weights[1:]) > 0:
      raise ValueError(f"weights are at least 0, and one of {', '.join(PARTS)} is above 0")
    for name, distances in (("hidden", divergences.HIDDEN), ("attention", divergences.ATTENTION)):
      if (chosen := getattr(self, f"{name}_distance")) not in distances:
        raise ValueError(f"{name}_distance is one of {', '.join(distances)}, not {chosen!r}")
    if self.task.collects or isinstance(self.task, Distill) or _remembers(self.task):
      raise ValueError(f"task: {type(self.task).__name__} keeps a state or makes its own batches and has no teacher")

  @property
  def terms(self) -> dict[str, float]:  # type: ignore[override]  # here they depend on fields
    own = {named(name): self.hard_weight * weight for name, weight in self.task.terms.items()}
    return own | {name: getattr(self, f"{name}_weight") for name in self._learned}

  @property
  def _learned(self) -> tuple[str, ...]:
    """What is learned from the teacher."""
    return tuple(name for name in PARTS if getattr(self, f"{name}_weight"))

  @property
  def _taps(self) -> tuple[str, ...]:
    return tuple(name for name in self._learned if name != "soft")

  def spec(self, batch: int, length: int) -> Spec:
    return self.task.spec(batch, length)

  def frozen(self) -> dict[str, Frozen]:
    return {TEACHER: self.teacher}

  def heads(self) -> dict[str, nn.Module]:
    return self.task.heads() | self._projection()

  def _projection(self) -> dict[str, nn.Module]:
    width = self.model.config.width
    if not self.teacher_width or self.teacher_width == width or not self.hidden_weight:
      return {}
    sizes = {"D": width, "E": self.teacher_width}
    return {PROJECTION: Einsum("BLD,DE->BLE", sizes, bias=False, deviation=width**-0.5, parent=None)}

  def init(self, rng: jax.Array, batch: Batch) -> Tree:
    params = self.task.init(rng, batch)
    x = jnp.zeros((1, 1, self.model.config.width))
    own = {name: head.init(jax.random.fold_in(rng, 1), x)["params"] for name, head in self._projection().items()}
    return params | {"heads": params["heads"] | own}

  def forward(self, params: Tree, batch: Batch, *, rng: jax.Array | None = None, taps: tuple[str, ...] = ()) -> Outputs:
    """Returns what the task computes of the student."""
    return self.task.forward(params, batch, rng=rng, taps=taps)

  def scored(self, params: Tree, batch: Batch, rng: jax.Array | None = None) -> tuple[jax.Array, Table, jax.Array]:
    return self.task.scored(params, batch, rng)

  def counts(self, batch: Batch) -> dict[str, jax.Array]:
    own = {named(name): count for name, count in self.task.counts(batch).items()}
    return own | {n: jnp.sum(weights_of(batch) if n == "soft" else _real(_segments(batch))) for n in self._learned}

  def loss(
    self, params: Tree, frozen: Mapping[str, FrozenModel], carry: Tree, batch: Batch, *, rng: jax.Array | None = None
  ) -> tuple[dict[str, Mean], Tree]:
    """Returns the terms of the task, its `loss` as `hard`, and those of the teacher; see `Base.loss`.

    Raises:
      UserError: the teacher reads other tokens, lacks a head, or has another width or other layers or heads.
    """
    model = frozen[TEACHER]
    student = OnePass(self.task, params, rng, self._taps)
    teacher = OnePass(dataclasses.replace(self.task, model=model.task.model), model.params, None, self._taps)
    self.check(teacher, batch)
    own, _ = student.task.loss(params, {}, {}, batch, rng=rng)
    terms = {named(name): mean for name, mean in own.items()}
    if self.soft_weight:
      score = self._tokens if predicts_tokens(self.task) else self._rows
      weights = weights_of(batch)
      terms["soft"] = Mean(jnp.sum(weights * score(student, teacher, batch)), jnp.sum(weights))
    if self._taps:
      hidden = student.hidden(batch), teacher.hidden(batch)
      segments = _segments(batch).reshape(hidden[0].tokens.shape[:2])
      compare = {"hidden": self._hidden, "attention": self._attention, "values": self._values}
      for name in self._taps:
        distances = compare[name](params, *self._pairs(name, *hidden), segments)
        terms[name] = Mean(jnp.sum(_real(segments) * distances), jnp.sum(_real(segments)))
    return terms, carry

  def _tokens(self, student: "OnePass", teacher: "OnePass", batch: Batch) -> jax.Array:
    """Returns the divergence of words at each token that the task scores."""
    x, table, _ = student.task.scored(student.params, batch, student.rng)
    y, other, _ = teacher.task.scored(teacher.params, batch)
    return divergences.words(x, table, y, other, self.model.config.vocabulary, self.temperature, self.chunk)

  def _rows(self, student: "OnePass", teacher: "OnePass", batch: Batch) -> jax.Array:
    """Returns the divergence of a head's classes, or the squared difference of its number."""
    scores, wanted = student.outputs(batch).logits, teacher.outputs(batch).logits
    assert scores is not None and wanted is not None
    if scores.shape[-1] == 1:
      return jnp.square(scores - wanted)[..., 0]
    if scores.ndim == weights_of(batch).ndim + 1:
      return divergences.classes(wanted, scores, self.temperature)
    # Of each token, whether a span starts or ends there: two distributions over the tokens of a row.
    wanted, scores = (jnp.where(batch["segments"][..., None] > 0, x, -1e9).swapaxes(1, 2) for x in (wanted, scores))
    return jnp.mean(divergences.classes(wanted, scores, self.temperature), axis=1)

  def _hidden(
    self, params: Tree, student_NxBxLxD: jax.Array, teacher_NxBxLxD: jax.Array, segments: jax.Array
  ) -> jax.Array:
    if self._projection():
      layers, rows, length, _ = student_NxBxLxD.shape
      x = self.head(PROJECTION, params, student_NxBxLxD.reshape(layers * rows, length, -1))
      student_NxBxLxD = x.reshape(layers, rows, length, -1)
    if student_NxBxLxD.shape != teacher_NxBxLxD.shape:
      raise UserError(
        f"config.task: hidden states of width {student_NxBxLxD.shape[-1]} are compared with those of width "
        f"{teacher_NxBxLxD.shape[-1]}: set teacher_width={teacher_NxBxLxD.shape[-1]}"
      )
    return jnp.mean(divergences.HIDDEN[self.hidden_distance](student_NxBxLxD, teacher_NxBxLxD), axis=0)

  def _attention(
    self, params: Tree, student_NxBxHxLxM: jax.Array, teacher_NxBxHxLxM: jax.Array, segments: jax.Array
  ) -> jax.Array:
    if student_NxBxHxLxM.shape != teacher_NxBxHxLxM.shape:
      sizes = f"{student_NxBxHxLxM.shape[2]} heads are compared with {teacher_NxBxHxLxM.shape[2]}"
      raise UserError(f"config.task.attention_weight: attention maps of {sizes}; set it to 0")
    distances = divergences.ATTENTION[self.attention_distance](student_NxBxHxLxM, teacher_NxBxHxLxM)
    return jnp.mean(distances, axis=(0, 2))

  def _values(
    self, params: Tree, student_NxBxLxGxK: jax.Array, teacher_NxBxLxGxK: jax.Array, segments: jax.Array
  ) -> jax.Array:
    if student_NxBxLxGxK.shape[3] != teacher_NxBxLxGxK.shape[3]:
      sizes = f"{student_NxBxLxGxK.shape[3]} heads are compared with {teacher_NxBxLxGxK.shape[3]}"
      raise UserError(f"config.task.values_weight: values of {sizes}; set it to 0")
    return jnp.mean(divergences.relations(student_NxBxLxGxK, teacher_NxBxLxGxK, segments), axis=0)

  def _pairs(self, name: str, student: Hidden, teacher: Hidden) -> tuple[jax.Array, jax.Array]:
    """Returns what was tapped in the layers that are compared, float32 and without a gradient in the teacher."""
    if name not in student.taps or name not in teacher.taps:
      raise UserError(f"config.task.{name}_weight: these models have no {name} to compare; set it to 0")
    own, others = student.taps[name], teacher.taps[name]
    chosen = self.layer_map or tuple((i + 1) * len(others) // len(own) - 1 for i in range(len(own)))
    if len(chosen) != len(own) or not -1 <= min(chosen) <= max(chosen) < len(others) or max(chosen) < 0:
      raise UserError(
        f"config.task.layer_map: {list(chosen)} gives each of {len(own)} layers one of {len(others)} of the teacher, "
        "or -1"
      )
    pairs = [(i, layer) for i, layer in enumerate(chosen) if layer >= 0]
    first, second = (jnp.asarray(numbers) for numbers in zip(*pairs, strict=True))
    return own[first].astype(jnp.float32), jax.lax.stop_gradient(others[second]).astype(jnp.float32)

  def check(self, teacher: "OnePass", batch: Batch) -> None:
    """Raises UserError where the teacher does not compute the task of the student."""
    read, known = self.model.config.vocabulary, teacher.task.model.config.vocabulary
    if read != known:
      raise UserError(f"config.task.teacher: {self.teacher.path} reads {known:,} tokens, and the student {read:,}")
    wanted = nn.unbox(jax.eval_shape(lambda: teacher.task.init(jax.random.key(0), batch)))
    wanted, there = (pytree.named_leaves({"heads": params["heads"]}) for params in (wanted, teacher.params))
    for name, leaf in wanted.items():
      if name not in there or there[name].shape != leaf.shape:
        shape = f"one of shape {list(there[name].shape)}" if name in there else "none"
        raise UserError(
          f"config.task.teacher: {type(self.task).__name__} needs {name} of shape {list(leaf.shape)}, and "
          f"{self.teacher.path} has {shape}"
        )


class OnePass:
  """A task whose model is applied to a batch once, with taps, however often its methods ask for that."""

  def __init__(self, task: Task, params: Tree, rng: jax.Array | None, taps: tuple[str, ...]):
    self.task, self.params, self.rng, self._taps = copy.copy(task), params, rng, taps
    self._apply = task.hidden
    self._pass: Hidden | None = None
    object.__setattr__(self.task, "hidden", self._once)

  def _once(self, params: Tree, batch: Batch, *, rng: jax.Array | None = None, taps: tuple[str, ...] = ()) -> Hidden:
    if self._pass is None:
      self._pass = self._apply(params, batch, rng=rng, taps=(*self._taps, *taps))
    return self._pass

  def outputs(self, batch: Batch) -> Outputs:
    """Returns what the task computes."""
    return self.task.forward(self.params, batch, rng=self.rng)

  def hidden(self, batch: Batch) -> Hidden:
    """Returns the forward pass, of what the task reads of the batch."""
    if self._pass is None:
      self.outputs(batch)
    assert self._pass is not None
    return self._pass


def predicts_tokens(task: Task) -> bool:
  """Returns whether a task scores the words of a vocabulary."""
  return type(task).scored is not Base.scored


def _remembers(task: Task) -> bool:
  return bool(jax.tree.leaves(jax.eval_shape(lambda: task.initial_carry(1))))


def named(name: str) -> str:
  """Returns the name of a task's own term; `loss` is the sum of all."""
  return "hard" if name == "loss" else name


def weights_of(batch: Batch) -> jax.Array:
  """Returns the weights of what a task scores: rows, or tokens."""
  return batch["row_weights"] if "row_weights" in batch else batch["weights"]


def _real(segments: jax.Array) -> jax.Array:
  """Returns 1.0 for tokens that are not padding."""
  return (segments > 0).astype(jnp.float32)


def _segments(batch: Batch) -> jax.Array:
  """Returns the segments of tokens, 0 for padding, [B, L]; of the decoder where there is one."""
  segments = next((batch[key] for key in ("decoder_segments", "segments") if key in batch), None)
  return jnp.ones(batch["inputs"].shape, jnp.int32) if segments is None else segments
