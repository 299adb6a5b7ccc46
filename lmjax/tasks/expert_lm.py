"""Causal language modelling with a mixture of experts, whose router also learns to use all of them."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from lmjax.data.batch import Batch
from lmjax.layers.experts import route
from lmjax.tasks.base import FrozenModel
from lmjax.tasks.causal_lm import CausalLM
from lmjax.utils.metrics import Mean
from lmjax.utils.pytree import Tree


@dataclasses.dataclass(frozen=True)
class ExpertLM(CausalLM):
  """Causal language modelling, and two losses of the router.

    loss = causal LM + balance * load balancing + router_z * z-loss
    load balancing = X sum_e f_e P_e     z-loss = (log sum_e exp(score_e))^2

  X: experts. f_e: assignments of a row's tokens to expert e, divided by the number of tokens; P_e: the mean of
  softmax(scores)_e over the tokens. Both losses are means over layers and over tokens that are not padding; a row's
  balancing loss counts for each of its tokens. Where all experts get the same, it is the number of experts of a token.

  Fedus et al., 2022 (Switch), arXiv:2101.03961, equations 4 to 6; Zoph et al., 2022 (ST-MoE), arXiv:2202.08906,
  equation 5. f P is a product of means, so its value depends on the tokens that are counted together: here those of
  one row and one layer, so that microbatches and devices add up to the same loss. Mixtral's function in transformers
  counts a batch and all layers together, and is equal for one row and one layer.

  Metrics: `max_load`, how many times its even share the most used expert of a row and layer gets, and `expert_0`, ...,
  the share of all assignments that each expert gets, over all layers.
  """

  balance: float = 0.02
  router_z: float = 0.001

  def __post_init__(self):
    if not (0 <= self.balance < float("inf") and 0 <= self.router_z < float("inf")):
      raise ValueError(f"balance and router_z are at least 0, not {self.balance} and {self.router_z}")
    config = self.model.config
    if not hasattr(config, "experts"):
      raise ValueError(f"a model with {type(config).__module__}.Config has no experts: use CausalLM or ExpertDecoder")

  @property
  def terms(self) -> dict[str, float]:  # type: ignore[override]  # here they depend on fields
    return {"loss": 1.0, "balance": self.balance, "router_z": self.router_z}

  def counts(self, batch: Batch) -> dict[str, jax.Array]:
    tokens = jnp.sum(_real(batch))
    return super().counts(batch) | {"balance": tokens, "router_z": tokens}

  def loss(
    self, params: Tree, frozen: Mapping[str, FrozenModel], carry: Tree, batch: Batch, *, rng: jax.Array | None = None
  ) -> tuple[dict[str, Mean], Tree]:
    hidden = self.hidden(params, batch, rng=rng, taps=("router_scores",))
    return self.score(params, hidden.tokens, batch) | self.routing(hidden.taps["router_scores"], _real(batch)), carry

  def routing(self, scores_NxBxLxX: jax.Array, real_BxL: jax.Array) -> dict[str, Mean]:
    """Returns the losses and metrics of the router's scores; real: 1 for tokens that count, 0 for padding."""
    config = self.model.config
    experts, chosen = config.experts, config.chosen
    tokens_B = jnp.sum(real_BxL, axis=1)
    count = jnp.sum(tokens_B)
    chosen_NxBxLxA, _ = route(scores_NxBxLxX, chosen, config.normalize)
    assigned_NxBxLxX = jnp.sum(jax.nn.one_hot(chosen_NxBxLxA, experts), axis=3)

    share_BxL = real_BxL / jnp.maximum(tokens_B, 1)[:, None]

    def row_mean(values_NxBxLxX):
      return jnp.einsum("nblx,bl->nbx", values_NxBxLxX, share_BxL)

    load_NxBxX, p_NxBxX = row_mean(assigned_NxBxLxX), row_mean(jax.nn.softmax(scores_NxBxLxX, axis=-1))
    balance_NxB = experts * jnp.sum(load_NxBxX * p_NxBxX, axis=-1)
    z_NxBxL = jax.nn.logsumexp(scores_NxBxLxX, axis=-1) ** 2
    max_load_NxB = jnp.max(load_NxBxX, axis=-1) * experts / chosen

    def total(values_NxB):
      return Mean(jnp.sum(jnp.mean(values_NxB, axis=0) * tokens_B), count)

    used_X = jnp.einsum("nbx,b->x", load_NxBxX, tokens_B) / (len(load_NxBxX) * chosen)
    return {
      "balance": total(balance_NxB),
      "router_z": Mean(jnp.sum(jnp.mean(z_NxBxL, axis=0) * real_BxL), count),
      "max_load": total(max_load_NxB),
      **{f"expert_{i}": Mean(used_X[i], count) for i in range(experts)},
    }


def _real(batch: Batch) -> jax.Array:
  """Returns 1 for each token [B, L] that is not padding; without segments, rows have none."""
  if "segments" in batch:
    return (batch["segments"] > 0).astype(jnp.float32)
  return jnp.ones(batch["inputs"].shape, jnp.float32)
