"""Sequence to sequence: predict every token of a target from those before it and the whole source."""

import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmjax.data.batch import Batch
from lmjax.layers.einsum import cast
from lmjax.tasks.base import Outputs
from lmjax.tasks.losses import cross_entropy
from lmjax.utils.metrics import Mean
from lmjax.utils.pytree import Tree


@dataclasses.dataclass(frozen=True)
class Seq2Seq:
  """-log p(target | those before it, source), the mean over weighted target tokens.

  What is learned is the data's: translation, span corruption, consecutive sequences, any text to text.
  target_length: tokens of a target, which the data says. smoothing: of labels in training (Vaswani et al., 2017,
  section 5.4); z_loss adds z_loss * (log Z)^2; chunk is how many positions are scored against the vocabulary at a time
  (0: all).
  """

  model: nn.Module
  target_length: int = 0  # 0: as long as the source
  smoothing: float = 0.0
  z_loss: float = 0.0
  chunk: int = 0

  def __post_init__(self):
    if not 0 <= self.smoothing < 1 or self.target_length < 0:
      raise ValueError("smoothing is at least 0 and below 1, target_length at least 0")

  def spec(self, batch: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    source, target = (batch, length), (batch, self.target_length or length)
    spec = {key: jax.ShapeDtypeStruct(source, jnp.int32) for key in ("inputs", "positions", "segments")}
    keys = ("decoder_inputs", "targets", "decoder_positions", "decoder_segments")
    spec |= {key: jax.ShapeDtypeStruct(target, jnp.int32) for key in keys}
    return spec | {"weights": jax.ShapeDtypeStruct(target, jnp.float32)}

  def init(self, rng: jax.Array, batch: Batch) -> Tree:
    source, target = batch["inputs"][:1], batch["decoder_inputs"][:1]
    return {"model": self.model.init(rng, source, target)["params"], "heads": {}}

  def initial_carry(self, batch: int) -> Tree:
    return {}

  def forward(self, params: Tree, batch: Batch, *, rng: jax.Array | None = None, taps: tuple[str, ...] = ()) -> Outputs:
    hidden, tapped = self._hidden(params, batch, rng, taps)
    return Outputs(hidden, self.model.apply({"params": params["model"]}, hidden, method="logits"), tapped)

  def counts(self, batch: Batch) -> dict[str, jax.Array]:
    return {"loss": jnp.sum(batch["weights"])}

  def loss(
    self, params: Tree, frozen: Tree, carry: Tree, batch: Batch, *, rng: jax.Array | None = None
  ) -> tuple[dict[str, Mean], Tree]:
    hidden, _ = self._hidden(params, batch, rng)
    loss, totals = cross_entropy(
      hidden, self.model.unembedding(params["model"]), batch["targets"], batch["weights"],
      self.model.config.vocabulary, self.z_loss, self.chunk, smoothing=0.0 if rng is None else self.smoothing,
    )  # fmt: skip
    count = jnp.sum(batch["weights"])
    found = {"nll": Mean(totals["nll"], count), "accuracy": Mean(totals["correct"], count)}
    return {"loss": Mean(loss, count)} | found, carry

  def collect(self, state, batch: Batch, rng: jax.Array) -> Iterable[Batch]:
    return (batch,)

  def _hidden(self, params: Tree, batch: Batch, rng: jax.Array | None, taps: tuple[str, ...] = ()):
    compute = cast(params["model"], jnp.dtype(self.model.config.dtype))
    rngs = {} if rng is None else {"dropout": rng}
    keys = ("inputs", "decoder_inputs", "positions", "segments", "decoder_positions", "decoder_segments")
    return self.model.apply({"params": compute}, *map(batch.get, keys), taps=taps, rngs=rngs)
