"""From scores to the next token: filters of the distribution, and the draw."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How the next token is drawn. Filters apply in this order; each field's default leaves the distribution alone.

  repetition_penalty: divides positive and multiplies negative scores of tokens already seen (Keskar et al., 2019,
  arXiv:1909.05858); temperature: divides scores, 0 is greedy; top_k: keeps the k best; top_p: keeps the fewest whose
  attention_weights reach p (Holtzman et al., 2020, arXiv:1904.09751); min_p: keeps those with at least min_p times the
  probability of the best (Nguyen et al., 2024, arXiv:2407.01082).
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  repetition_penalty: float = 1.0

  def __post_init__(self):
    if self.temperature < 0:
      raise ValueError(f"temperature is at least 0, not {self.temperature}")
    if self.top_k < 0:
      raise ValueError(f"top_k is at least 0, not {self.top_k}")
    if not 0 < self.top_p <= 1:
      raise ValueError(f"top_p is above 0 and at most 1, not {self.top_p}")
    if not 0 <= self.min_p <= 1:
      raise ValueError(f"min_p is from 0 to 1, not {self.min_p}")
    if self.repetition_penalty <= 0:
      raise ValueError(f"repetition_penalty is above 0, not {self.repetition_penalty}")

  def filter(self, logits_BxV: jax.Array, seen_BxV: jax.Array) -> jax.Array:
    """Returns the scores with every token that cannot be drawn at -inf."""
    x = logits_BxV.astype(jnp.float32)
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
      kept = jnp.cumsum(p, axis=-1) - p < self.top_p  # a token stays if those before it do not reach p
      x = jnp.where(x >= jnp.min(jnp.where(kept, ordered, jnp.inf), -1, keepdims=True), x, -jnp.inf)
    if self.min_p > 0:
      x = jnp.where(x >= jnp.max(x, -1, keepdims=True) + jnp.log(self.min_p), x, -jnp.inf)
    return x

  def draw(self, rngs_B: jax.Array, logits_BxV: jax.Array, seen_BxV: jax.Array) -> jax.Array:
    """Returns a token for each row, drawn with the row's own key: a text does not depend on its neighbours."""
    if self.temperature == 0 and self.repetition_penalty == 1:
      return jnp.argmax(logits_BxV, axis=-1).astype(jnp.int32)
    x = self.filter(logits_BxV, seen_BxV)
    if self.temperature == 0:
      return jnp.argmax(x, axis=-1).astype(jnp.int32)
    return jax.vmap(jax.random.categorical)(rngs_B, x).astype(jnp.int32)
