"""Pruning of a trained model at once, by magnitude, at random, or by what its kernels read."""

import dataclasses
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from lmjax.compression import masks, sparsegpt
from lmjax.compression.calibrate import calibrate
from lmjax.compression.gptq import hessian
from lmjax.compression.method import check_pattern
from lmjax.compression.quantize import QTensor
from lmjax.layers.leaves import Parameter
from lmjax.parallel.sharding import LogicallyPartitioned
from lmjax.tasks.base import Task
from lmjax.utils.errors import UserError, one_line

SCORES = ("magnitude", "random", "wanda", "sparsegpt")
BY_INPUTS = {"wanda": "Wanda", "sparsegpt": "SparseGPT"}  # the scores that look at what kernels read


@dataclasses.dataclass(frozen=True)
class OneShot:
  """The kernels of a model lose their lowest scores.

    magnitude |W|;  Wanda |W_ij| ||x_i||_2, x the inputs of the kernel (Sun et al., 2024, arXiv:2306.11695)
    SparseGPT: see `sparsegpt.prune`, which changes the weights that stay

  sparsity: the fraction of each kernel that becomes zero. structure: `layer`, `output`, `global` or N:M, see
  `masks.removed`; Wanda compares the inputs of each output, SparseGPT the weights of a layer. targets: a regular
  expression that is searched in the paths of kernels. seed: of random scores.
  """

  sparsity: float = 0.5
  score: str = "magnitude"
  structure: str = "layer"
  targets: str = "^model/.*kernel$"
  seed: int = 0

  def __post_init__(self):
    masks.check(self.sparsity, self.structure)
    if self.score not in SCORES:
      raise ValueError(f"the score is one of {', '.join(SCORES)}, not {self.score!r}")
    if self.score == "wanda" and self.structure in ("layer", "global"):
      raise ValueError("Wanda compares the inputs of an output: its structure is output, or N:M")
    if self.score == "sparsegpt" and self.structure in ("output", "global"):
      raise ValueError("SparseGPT compares the weights of a layer: its structure is layer, or N:M")
    check_pattern(self.targets)

  @property
  def needs_inputs(self) -> bool:
    return self.score in BY_INPUTS

  def apply(
    self, task: Task, params: dict[str, LogicallyPartitioned], inputs: Mapping[str, jax.Array] | None = None
  ) -> dict[str, Parameter]:
    """Returns the parameters with zeros in the kernels; see `Method`.

    Raises:
      UserError: nothing matches, the model is quantized, or M of N:M does not divide the inputs of a kernel.
    """
    kernels = [name for name in params if name.endswith("kernel")]
    targets = {name: params[name] for name in kernels if re.search(self.targets, name)}
    if not targets:
      raise UserError(f"prune: {self.targets!r} matches no kernel; those of this model: {one_line(', '.join(kernels))}")
    if any(isinstance(box.value, QTensor) for box in params.values()):
      raise UserError("prune: the model is quantized; prune it before it is quantized")
    changed: dict[str, Parameter] = {}
    if self.needs_inputs:
      if not inputs:
        raise UserError(f"prune: {BY_INPUTS[self.score]} needs calibration data")
      observe, change = (hessian, self._sparsegpt) if self.score == "sparsegpt" else (_squares, self._wanda)
      changed |= calibrate(task, params, set(targets), inputs, observe, change)[0]
    scores = {
      name: masks.random_scores(name, box.value.shape, self.seed) if self.score == "random" else jnp.abs(box.value)
      for name, box in targets.items()
      if name not in changed
    }
    if self.structure == "global":
      lost = masks.removed_globally(scores, self.sparsity)
    else:
      lost = {n: masks.removed(score, params[n].names, self.structure, self.sparsity) for n, score in scores.items()}
    changed |= {name: jnp.where(mask, 0.0, params[name].value) for name, mask in lost.items()}
    return {name: changed.get(name, box.value) for name, box in params.items()}

  def _wanda(self, name: str, kernel: jax.Array, axes: tuple[str | None, ...], squares_I: jax.Array) -> jax.Array:
    rows = masks.matrices(kernel, axes)
    scores = (jnp.abs(rows) * jnp.sqrt(squares_I)[None, :, None]).reshape(kernel.shape)
    return jnp.where(masks.removed(scores, axes, self.structure, self.sparsity), 0.0, kernel)

  def _sparsegpt(self, name: str, kernel: jax.Array, axes: tuple[str | None, ...], hessian_IxI: jax.Array) -> jax.Array:
    masks.removed(jnp.abs(kernel), axes, self.structure, self.sparsity)  # refuses an M that does not divide the inputs
    weights_IxO = masks.matrices(kernel, axes)[0]
    return sparsegpt.prune(weights_IxO, hessian_IxI, self.sparsity, self.structure).reshape(kernel.shape)


def _squares(x_TxI: jax.Array) -> jax.Array:
  return jnp.sum(jnp.square(x_TxI.astype(jnp.float32)), axis=0)
