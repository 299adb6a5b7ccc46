"""What downstream tasks share: the batch that a model of any kind reads, and the vectors that a head scores."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmjax.data.batch import Batch
from lmjax.models.base import Hidden
from lmjax.models.heads import Classifier, Mix, scalar_mix
from lmjax.tasks.base import Base, Spec
from lmjax.utils.pytree import Tree

MIX, START = "mix", 0  # the head that weighs ELMo's layers; the token from which a decoder of a source starts


@dataclasses.dataclass(frozen=True)
class Downstream(Base):
  """A model of any kind with a head on top of its final vectors.

  dropout: of the vectors that the head takes, in training. characters: of a word, for a model that reads them. labels:
  the names of the classes, which come from the data.

  An ELMo's vectors are a weighted sum of all its layers, whose weights are learned: the head `mix` (Peters et al.,
  2018, section 3.2).
  """

  dropout: float = 0.1
  characters: int = 50
  labels: tuple[str, ...] = ()

  def __post_init__(self):
    if not 0 <= self.dropout < 1:
      raise ValueError(f"dropout is at least 0 and below 1, not {self.dropout}")

  def inputs(self, batch: int, length: int) -> Spec:
    """Returns the part of the spec that the model reads."""
    keys = ["inputs", "positions", "segments"] + ["token_types"] * (self.model.kind == "encoder")
    spec = {key: jax.ShapeDtypeStruct((batch, length), jnp.int32) for key in keys}
    if self.model.kind == "bidirectional_lm":
      spec |= {"characters": jax.ShapeDtypeStruct((batch, length, self.characters), jnp.int32)}
    return spec

  def mix(self) -> dict[str, nn.Module]:
    """Returns the head that weighs the layers of an ELMo; none for other kinds."""
    is_elmo = self.model.kind == "bidirectional_lm"
    return {MIX: Mix(self.model.config.depth + 1, parent=None)} if is_elmo else {}

  @property
  def width(self) -> int:
    """The size of the vectors that a head takes."""
    return self.model.config.width * (2 if self.model.kind == "bidirectional_lm" else 1)

  def init(self, rng: jax.Array, batch: Batch) -> Tree:
    first, *rest = jax.random.split(rng, 1 + len(self.heads()))
    row = with_decoder_inputs(self.model.kind, {key: value[:1] for key, value in batch.items()})
    x = jnp.zeros((1, 1, self.width))
    heads = {name: head.init(key, x) for (name, head), key in zip(self.heads().items(), rest, strict=True)}
    return {
      "model": self.model.init(first, row)["params"],
      "heads": {name: variables["params"] for name, variables in heads.items()},
    }

  def vectors(self, params: Tree, batch: Batch, rng: jax.Array | None) -> Hidden:
    """Returns the final vectors that a head takes; of an encoder-decoder, those of its decoder."""
    batch = with_decoder_inputs(self.model.kind, batch)
    if self.model.kind != "bidirectional_lm":
      return self.hidden(params, batch, rng=rng)
    hidden = self.hidden(params, batch, rng=rng, taps=("hidden",))
    weights_N, gamma = self.head(MIX, params, hidden.tokens)
    return dataclasses.replace(hidden, tokens=scalar_mix(hidden.taps["hidden"], weights_N, gamma))

  def drop(self, x: jax.Array, rng: jax.Array | None) -> jax.Array:
    """Returns vectors with dropout in training."""
    if rng is None or not self.dropout:
      return x
    kept = jax.random.bernoulli(jax.random.fold_in(rng, 1), 1 - self.dropout, x.shape)
    return jnp.where(kept, x / (1 - self.dropout), 0)


def with_decoder_inputs(kind: str, batch: Batch, start: int = START) -> Batch:
  """Returns a batch in which the decoder of an encoder-decoder reads the source once more, after a start token."""
  if kind != "encoder_decoder":
    return batch
  shifted = {"decoder_inputs": jnp.pad(batch["inputs"], ((0, 0), (1, 0)), constant_values=start)[:, :-1]}
  return dict(batch) | shifted | {f"decoder_{key}": batch[key] for key in ("positions", "segments")}


def classifier(model: nn.Module, classes: int) -> tuple[Classifier, str]:
  """Returns the head that scores the whole of a sequence, and the vector it takes, as transformers' models have them.

  The vector is that of the pooler, of the `first` token, of the `last` one, or the `mean` over all.
  """
  config = model.config
  if model.kind == "decoder":
    return Classifier(classes, bias=False, parent=None), "last"
  if model.kind == "encoder_decoder":
    return Classifier(classes, "tanh", parent=None), "last"
  if model.kind == "bidirectional_lm":
    return Classifier(classes, "tanh", parent=None), "mean"
  if getattr(config, "pooler", False) and not getattr(config, "offset", 0):
    return Classifier(classes, parent=None), "pooled"
  # RoBERTa's classifier does not take the pooler and has a dense layer with tanh, ELECTRA's gelu, DistilBERT's relu.
  activation = "tanh" if getattr(config, "offset", 0) else "gelu" if getattr(config, "token_types", 1) else "relu"
  return Classifier(classes, activation, parent=None), "first"


def pool(hidden: Hidden, pooling: str, segments_BxL: jax.Array) -> jax.Array:
  """Returns the vector [B, D] of each row: `pooled`, `first`, `last`, or `mean`.

  Where a row has several segments, the orders of a pair, their last vectors are added.
  """
  x_BxLxD = hidden.tokens
  if pooling == "pooled":
    assert hidden.pooled is not None
    return hidden.pooled
  if pooling == "first":
    return x_BxLxD[:, 0]
  real_BxL = segments_BxL > 0
  if pooling == "last":
    following = jnp.pad(segments_BxL, ((0, 0), (0, 1)))[:, 1:]
    return jnp.einsum("bl,bld->bd", (real_BxL & (following != segments_BxL)).astype(x_BxLxD.dtype), x_BxLxD)
  count_B = jnp.maximum(jnp.sum(real_BxL, axis=1), 1)
  return jnp.einsum("bl,bld->bd", real_BxL.astype(x_BxLxD.dtype), x_BxLxD) / count_B[:, None]


def segment_means(x_BxLxD: jax.Array, segments_BxL: jax.Array, count: int, normalize: bool) -> jax.Array:
  """Returns the mean [B, S, D] over the tokens of each of the first `count` segments, float32; 0 of an empty one.

  normalize: scales each to length 1.
  """
  own_BxSxL = (segments_BxL[:, None] == jnp.arange(1, count + 1)[None, :, None]).astype(jnp.float32)
  sums_BxSxD = jnp.einsum("bsl,bld->bsd", own_BxSxL, x_BxLxD.astype(jnp.float32))
  means_BxSxD = sums_BxSxD / jnp.maximum(jnp.sum(own_BxSxL, axis=2, keepdims=True), 1)
  if not normalize:
    return means_BxSxD
  return means_BxSxD * jax.lax.rsqrt(jnp.maximum(jnp.sum(means_BxSxD**2, axis=2, keepdims=True), 1e-12))
