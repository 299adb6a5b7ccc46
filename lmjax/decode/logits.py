"""Sampling the next token from logits: filters and a random draw."""

import dataclasses
import math

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How the next token is sampled: filters, in the order in which they are applied. Their defaults change nothing.

  repetition_penalty: divides positive and multiplies negative logits of tokens that occurred before (Keskar et al.,
  2019, arXiv:1909.05858). temperature: divides the logits; 0 is greedy. top_k: keeps the k most probable tokens.
  top_p: keeps the fewest tokens whose probabilities sum to at least p (Holtzman et al., 2020, arXiv:1904.09751).
  min_p: keeps tokens with at least min_p times the highest probability (Nguyen et al., 2024, arXiv:2407.01082).
  excluded: ids that are never drawn.
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  repetition_penalty: float = 1.0
  excluded: tuple[int, ...] = ()

  def __post_init__(self):
    if not 0 <= self.temperature < math.inf:
      raise ValueError(f"temperature must be at least 0, not {self.temperature}")
    if not self.top_k >= 0:
      raise ValueError(f"top_k must be at least 0, not {self.top_k}")
    if not 0 < self.top_p <= 1:
      raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p}")
    if not 0 <= self.min_p <= 1:
      raise ValueError(f"min_p must be from 0 to 1, not {self.min_p}")
    if not 0 < self.repetition_penalty < math.inf:
      raise ValueError(f"repetition_penalty must be above 0, not {self.repetition_penalty}")

  def filter(self, logits_BxV: jax.Array, seen_BxV: jax.Array) -> jax.Array:
    """Returns the filtered logits [B, V] in float32, -inf for excluded tokens; seen: tokens that occurred before."""
    x = exclude(logits_BxV.astype(jnp.float32), self.excluded)
    if self.repetition_penalty != 1:
      x = jnp.where(seen_BxV, jnp.where(x > 0, x / self.repetition_penalty, x * self.repetition_penalty), x)
    if self.temperature == 0:
      return jnp.where(x == jnp.max(x, -1, keepdims=True), x, -jnp.inf)
    x /= self.temperature
    if 0 < self.top_k < x.shape[-1]:
      x = jnp.where(x >= jax.lax.top_k(x, self.top_k)[0][:, -1:], x, -jnp.inf)
    if self.top_p < 1:
      ordered = jnp.sort(x, axis=-1, descending=True)
      p = jax.nn.softmax(ordered, axis=-1)
      kept = jnp.cumsum(p, axis=-1) - p < self.top_p  # keep a token if the more probable ones sum to less than p
      x = jnp.where(x >= jnp.min(jnp.where(kept, ordered, jnp.inf), -1, keepdims=True), x, -jnp.inf)
    if self.min_p > 0:
      x = jnp.where(x >= jnp.max(x, -1, keepdims=True) + jnp.log(self.min_p), x, -jnp.inf)
    return x

  def draw(self, rngs_B: jax.Array, logits_BxV: jax.Array, seen_BxV: jax.Array) -> jax.Array:
    """Returns a token for each row [B], sampled with its own key, so that rows do not depend on each other."""
    plain = self.temperature == 0 and self.repetition_penalty == 1  # the filters would change nothing
    x = exclude(logits_BxV, self.excluded) if plain else self.filter(logits_BxV, seen_BxV)
    drawn = jnp.argmax(x, axis=-1) if self.temperature == 0 else jax.vmap(jax.random.categorical)(rngs_B, x)
    return drawn.astype(jnp.int32)


def exclude(logits_BxV: jax.Array, ids: tuple[int, ...]) -> jax.Array:
  """Returns logits that are -inf at some ids."""
  return logits_BxV.at[:, jnp.array(ids)].set(-jnp.inf) if ids else logits_BxV
