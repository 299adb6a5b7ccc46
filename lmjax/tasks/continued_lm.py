"""Causal language modelling of text that goes on from batch to batch."""

import dataclasses

import jax
import jax.numpy as jnp

from lmjax.data.batch import Batch
from lmjax.layers.einsum import cast
from lmjax.tasks.causal_lm import CausalLM
from lmjax.utils.metrics import Mean
from lmjax.utils.pytree import Tree


@dataclasses.dataclass(frozen=True)
class ContinuedLM(CausalLM):
  """-log p(target | all tokens before it in its stream), for models whose memory does not grow.

  Each row of a batch goes on where that row of the last batch ended: what the model remembered stands in `carry`, and
  gradients end there (truncated backpropagation through time, Williams and Peng, 1990). Documents follow one another
  with nothing but their start and end tokens between them.
  """

  packed: bool = False

  def __post_init__(self):
    if self.packed:
      raise ValueError("packed is false where documents go on into each other")

  def initial_carry(self, batch: int) -> Tree:
    return self.model.apply({}, batch, 0, method="init_cache")

  def loss(
    self, params: Tree, frozen: Tree, carry: Tree, batch: Batch, *, rng: jax.Array | None = None
  ) -> tuple[dict[str, Mean], Tree]:
    compute = cast(params["model"], jnp.dtype(self.model.config.dtype))
    rngs = {} if rng is None else {"dropout": rng}
    real = batch["weights"] > 0
    hidden, carry = self.model.apply({"params": compute}, carry, batch["inputs"], real, method="extend", rngs=rngs)
    return self.score(params, hidden, batch), jax.lax.stop_gradient(carry)
