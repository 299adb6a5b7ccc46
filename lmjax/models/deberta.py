"""DeBERTa, versions 2 and 3: an encoder whose attention scores contents and distances apart.

He et al. (2021), arXiv:2006.03654 and arXiv:2111.09543.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lmjax.layers.block import Block
from lmjax.layers.einsum import Einsum, Embed
from lmjax.layers.kernels import dispatch
from lmjax.layers.kernels.mask import Mask
from lmjax.layers.mlp import Mlp
from lmjax.layers.norms import LayerNorm
from lmjax.layers.stack import Stack
from lmjax.models import encoder
from lmjax.models.base import Hidden, Table, positions_of
from lmjax.parallel.sharding import constrain
from lmjax.utils.pytree import Tree

SCORES = ("c2p", "p2c")  # of contents against distances, and of distances against contents
UNUSED = dict(embedding=None, shared_layers=False, offset=0, pooler=False)


@dataclasses.dataclass(frozen=True)
class Config(encoder.Config):
  """The shape of a DeBERTa and how it is computed."""

  token_types: int = 0
  pooler: bool = False
  epsilon: float = 1e-7
  relative: bool = True  # attention knows distances
  positions: bool = False  # learned positions are added to the embeddings
  scores: tuple[str, ...] = SCORES  # that attention adds to those of contents, if `relative`
  buckets: int = 256  # of distances in each direction; 0: one for each distance
  max_distance: int = 512  # farther ones are as far
  shared_projections: bool = True  # distances are projected as contents are
  distance_norm: bool = True  # vectors of distances are normalized

  def __post_init__(self):
    super().__post_init__()
    object.__setattr__(self, "scores", tuple(self.scores))
    for name, value in UNUSED.items():
      if getattr(self, name) != value:
        raise ValueError(f"{name} is {value} in a DeBERTa, not {getattr(self, name)}")
    if not set(self.scores) <= set(SCORES):
      raise ValueError(f"scores are of {', '.join(SCORES)}, not {', '.join(self.scores)}")
    if self.buckets < 0 or self.buckets == 1 or self.max_distance < self.buckets // 2 + 2:
      raise ValueError(
        f"buckets is 0 or more than 1, and max_distance more than half of it plus 1, not {self.buckets} and "
        f"{self.max_distance}"
      )

  @property
  def span(self) -> int:
    """The number of rows for distances in each direction."""
    return self.buckets or self.max_distance

  @property
  def num_buckets(self) -> int:
    """The number of vectors of distances."""
    return 2 * self.span


def buckets_of(distances: np.ndarray, buckets: int, max_distance: int) -> np.ndarray:
  """Returns the buckets of distances d >= 0, which grow with their logarithm from m = buckets / 2 on.

    d if d <= m, else m + ceil((m - 1) log(d / m) / log((max_distance - 1) / m))

  In float32, as the published models were trained. Without buckets each distance is one.
  """
  half = buckets // 2
  if not half:
    return distances
  ratio = np.maximum(distances, half).astype(np.float32) / np.float32(half)
  whole = np.log(np.float32((max_distance - 1) / half))
  above = np.ceil(np.log(ratio) / whole * np.float32(half - 1)) + half
  return np.where(distances <= half, distances, above).astype(np.int32)


class DisentangledAttention(nn.Module):
  """Softmax attention over the sum of up to three scores of a query i and a key j at the signed distance d = i - j.

    (q_i . k_j + q_i . key(r_d) + query(r_d) . k_j) / sqrt(K * number of scores)

  vectors_RxD: r, one for each bucket of a distance; shared by all layers.
  """

  config: Config
  vectors_RxD: jax.Array

  @nn.compact
  def __call__(
    self, x_BxLxD: jax.Array, positions_BxL: jax.Array, mask: Mask, cache: None = None, layer: int = 0,
    tap: bool = False,
  ) -> tuple[jax.Array, None, jax.Array | None]:  # fmt: skip
    """Returns the mixed vectors [B, L, D], None for a cache, and the weights [B, H, L, M] if tapped."""
    c = self.config
    sizes = {"D": c.width, "H": c.heads, "K": c.head_size}
    project = partial(Einsum, "BLD,DHK->BLHK", sizes)
    query, key = project(name="query"), project(name="key")
    scale = (1 + len(c.scores)) ** -0.5
    q_BxLxHxK, k_BxMxHxK = query(x_BxLxD) * scale, key(x_BxLxD)
    v_BxMxHxK = project(name="value")(x_BxLxD)
    q_BxLxHxK = constrain(q_BxLxHxK, "batch", "length", "heads", None)
    numbers_BxHxLxM = self._numbers(positions_BxL)
    bias, vectors, single = [], self.vectors_RxD[None], jnp.float32
    if c.relative and "c2p" in c.scores:
      p_RxHxK = (key if c.shared_projections else project(name="distance_key"))(vectors)[0]
      scores_BxHxLxR = jnp.einsum("blhk,rhk->bhlr", q_BxLxHxK, p_RxHxK, preferred_element_type=single)
      bias.append(jnp.take_along_axis(scores_BxHxLxR, numbers_BxHxLxM, axis=3))
    if c.relative and "p2c" in c.scores:
      p_RxHxK = (query if c.shared_projections else project(name="distance_query"))(vectors)[0] * scale
      scores_BxHxRxM = jnp.einsum("rhk,bmhk->bhrm", p_RxHxK, k_BxMxHxK, preferred_element_type=single)
      bias.append(jnp.take_along_axis(scores_BxHxRxM, numbers_BxHxLxM, axis=2))
    if bias:
      mask = dataclasses.replace(mask, bias_BxHxLxM=sum(bias) * c.head_size**-0.5)
    o_BxLxHxK = dispatch.attend(q_BxLxHxK, k_BxMxHxK, v_BxMxHxK, mask)
    weights = dispatch.attention_weights(q_BxLxHxK, k_BxMxHxK, mask) if tap else None
    return Einsum("BLHK,HKD->BLD", sizes, name="out")(o_BxLxHxK), None, weights

  def _numbers(self, positions_BxL: jax.Array) -> jax.Array:
    """Returns the row of every distance between two tokens, [B, 1, L, M]."""
    c = self.config
    by_distance = jnp.asarray(buckets_of(np.arange(positions_BxL.shape[1]), c.buckets, c.max_distance))
    distance_BxLxM = positions_BxL[:, :, None] - positions_BxL[:, None, :]
    bucket_BxLxM = jnp.sign(distance_BxLxM) * jnp.take(by_distance, jnp.abs(distance_BxLxM), mode="clip")
    return jnp.clip(bucket_BxLxM + c.span, 0, 2 * c.span - 1)[:, None]


class DeBERTa(nn.Module):
  """A bidirectional transformer, post-norm, whose positions are distances.

  Parameters: `embed`, `positions`, `token_types` (if there are any), `embed_norm`, `distances`, `distance_norm` (both
  if wanted), `stack`, `unembed` (if not tied).
  """

  config: Config
  kind = "encoder"
  causal = False

  @nn.compact
  def __call__(self, batch: Mapping[str, jax.Array], taps: tuple[str, ...] = ()) -> Hidden:
    """Returns the final vectors [B, L, D] and what was tapped (see Stack).

    Tokens attend to those of their own segment; padding has segment 0.
    """
    c, ids_BxL, positions_BxL = self.config, batch["inputs"], positions_of(batch)
    dtype = jnp.dtype(c.dtype)
    norm = partial(LayerNorm, epsilon=c.epsilon)
    x_BxLxD = Embed(c.vocabulary, c.width, name="embed")(ids_BxL, dtype)
    if c.positions:
      x_BxLxD += Embed(c.length, c.width, axis="positions", name="positions")(positions_BxL, dtype)
    if c.token_types:
      kinds_BxL = batch.get("token_types", jnp.zeros_like(ids_BxL))
      x_BxLxD += Embed(c.token_types, c.width, axis="token_types", name="token_types")(kinds_BxL, dtype)
    x_BxLxD = constrain(norm(name="embed_norm")(x_BxLxD), "batch", "residual_length", None)
    x_BxLxD = nn.Dropout(c.dropout)(x_BxLxD, deterministic=not self.has_rng("dropout"))
    vectors_RxD = jnp.zeros((0, c.width), dtype)
    if c.relative:
      vectors_RxD = Embed(2 * c.span, c.width, axis="positions", name="distances")(jnp.arange(2 * c.span), dtype)
      vectors_RxD = norm(name="distance_norm")(vectors_RxD) if c.distance_norm else vectors_RxD
    block = partial(
      Block, norm=norm, attention=partial(DisentangledAttention, c, vectors_RxD), post=True, dropout=c.dropout,
      mlp=partial(Mlp, width=c.width, mlp=c.mlp, activation=c.activation),
    )  # fmt: skip
    mask = dispatch.prepare_mask(Mask(batch.get("segments")), ids_BxL.shape[1])
    x_BxLxD, tapped = Stack(block, c.depth, c.scan, c.remat, name="stack")(x_BxLxD, positions_BxL, mask, taps)
    if not c.tie_embeddings:
      Embed(c.vocabulary, c.width, name="unembed")(ids_BxL)
    return Hidden(x_BxLxD, taps=tapped)

  def unembedding(self, params: Tree) -> Table:
    """Returns the table [V padded, D] that scores vectors, out of this model's parameters."""
    return Table(params["embed" if self.config.tie_embeddings else "unembed"]["table"])


def _deberta(depth: int, width: int, heads: int) -> dict:
  shape = dict(width=width, depth=depth, heads=heads, head_size=width // heads, mlp=4 * width)
  return dict(vocabulary=128_100, length=512) | shape


PRESETS: dict[str, dict] = {
  "deberta-v3-xsmall": _deberta(12, 384, 6),
  "deberta-v3-small": _deberta(6, 768, 12),
  "deberta-v3-base": _deberta(12, 768, 12),
  "deberta-v3-large": _deberta(24, 1024, 16),
}
