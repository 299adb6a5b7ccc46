"""What tasks share that compare a policy with a reference model, which is not trained."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from lmjax.data.batch import Batch
from lmjax.layers import leaves
from lmjax.tasks.base import Base, Frozen, FrozenModel
from lmjax.utils.errors import UserError
from lmjax.utils.pytree import Tree

BASE, NONE = "base", "none"


@dataclasses.dataclass(frozen=True)
class WithReference(Base):
  """A task with a reference model.

  reference: the path of a saved model; `base`, what LoRA keeps frozen; `none`. reference_dtype: of its parameters and
  its computation.
  """

  reference: str = BASE
  reference_dtype: str = "float32"

  def frozen(self) -> dict[str, Frozen]:
    return {} if self.reference in (BASE, NONE) else {"reference": Frozen(self.reference, self.reference_dtype)}

  def reference_model(self, params: Tree, frozen: Mapping[str, FrozenModel]) -> tuple[Base, Tree] | None:
    """Returns the task and the parameters of the reference model, or None where there is none.

    Raises:
      UserError: the reference is the base of LoRA, and there is no LoRA; or it is a model that predicts no tokens.
    """
    if self.reference == NONE:
      return None
    if self.reference != BASE:
      task, params = frozen["reference"].task, frozen["reference"].params
      if type(task).scored is Base.scored:
        raise UserError(f"config.task.reference: {self.reference}, for {type(task).__name__}, predicts no tokens")
      return task, params
    base = jax.tree.map(lambda leaf: getattr(leaf, "base", leaf), params, is_leaf=leaves.is_leaf)
    if jax.tree.structure(base) == jax.tree.structure(params):
      raise UserError("config.task.reference: only LoRA has a base; name the saved model that the run starts from")
    return self, base

  def reference_log_probs(self, params: Tree, frozen: Mapping[str, FrozenModel], batch: Batch) -> jax.Array:
    """Returns log p_reference of every target token [B, L], without a gradient; 0 without a reference."""
    if (model := self.reference_model(params, frozen)) is None:
      return jnp.zeros(batch["targets"].shape, jnp.float32)
    return jax.lax.stop_gradient(model[0].log_probs(model[1], batch))
