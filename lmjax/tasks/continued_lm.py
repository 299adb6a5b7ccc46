"""Causal language modelling of text that continues from batch to batch."""

import dataclasses
from collections.abc import Mapping

import jax

from lmjax.data.batch import Batch
from lmjax.tasks.base import FrozenModel
from lmjax.tasks.causal_lm import CausalLM
from lmjax.utils.metrics import Mean
from lmjax.utils.pytree import Tree


@dataclasses.dataclass(frozen=True)
class ContinuedLM(CausalLM):
  """-log p(target | all tokens before it in its stream), for models whose memory does not grow.

  Each row of a batch continues that row of the last batch: the model's state is kept in `carry`, and gradients end
  there (truncated backpropagation through time, Williams and Peng, 1990). Documents follow one another with nothing but
  their start and end tokens between them.
  """

  packed: bool = False

  def __post_init__(self):
    if self.packed:
      raise ValueError("packed must be false: documents continue into each other")

  def initial_carry(self, batch: int) -> Tree:
    return self.model.apply({}, batch, 0, method="init_cache")

  def loss(
    self, params: Tree, frozen: Mapping[str, FrozenModel], carry: Tree, batch: Batch, *, rng: jax.Array | None = None
  ) -> tuple[dict[str, Mean], Tree]:
    variables, valid = {"params": self.compute(params)}, batch["weights"] > 0
    hidden, carry = self.model.apply(variables, carry, batch["inputs"], valid, method="extend", rngs=self.rngs(rng))
    return self.score(params, hidden, batch), jax.lax.stop_gradient(carry)
