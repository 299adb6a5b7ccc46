"""Masked language modelling with next-sentence prediction: how BERT is pretrained."""

import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmjax.data.batch import Batch
from lmjax.layers.einsum import cast, vocabulary_logits
from lmjax.models.heads import Classifier, MaskedLMHead
from lmjax.tasks.base import Outputs
from lmjax.tasks.losses import cross_entropy
from lmjax.utils.metrics import Mean
from lmjax.utils.pytree import Tree


@dataclasses.dataclass(frozen=True)
class MaskedLM:
  """-log p(word | the text around it) at predicted places, plus -log p(B follows A | both) (Devlin et al., 2019).

    loss = mean over predicted places + mean over pairs

  max_predictions: places a row at most; only they go through the vocabulary. next_sentence: whether rows are pairs
  whose second half may come from elsewhere.
  """

  model: nn.Module
  max_predictions: int = 20
  next_sentence: bool = True

  def spec(self, batch: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    keys = ("inputs", "token_types", "positions", "segments")
    spec = {key: jax.ShapeDtypeStruct((batch, length), jnp.int32) for key in keys}
    places = (batch, self.max_predictions)
    spec |= {key: jax.ShapeDtypeStruct(places, jnp.int32) for key in ("masked_positions", "labels")}
    spec |= {"weights": jax.ShapeDtypeStruct(places, jnp.float32)}
    if self.next_sentence:
      spec |= {"next_sentence_label": jax.ShapeDtypeStruct((batch,), jnp.int32)}
    return spec

  def init(self, rng: jax.Array, batch: Batch) -> Tree:
    c = self.model.config
    x = jnp.zeros((1, 1, c.width))
    first, second, third = jax.random.split(rng, 3)
    heads = {"masked_lm": self._words.init(second, x)["params"]}
    if self.next_sentence:
      heads["next_sentence"] = self._pairs.init(third, x[:, 0])["params"]
    return {"model": self.model.init(first, batch["inputs"][:1])["params"], "heads": heads}

  def initial_carry(self, batch: int) -> Tree:
    return {}

  def forward(self, params: Tree, batch: Batch, *, rng: jax.Array | None = None, taps: tuple[str, ...] = ()) -> Outputs:
    """Returns the scores of every place [B, L, V], as fill-in wants them.

    Among the taps is `next_sentence` [B, 2], the scores of "B follows" and "B is random".
    """
    hidden, pooled, tapped = self._hidden(params, batch, rng, taps)
    vectors, bias = self._words.apply({"params": params["heads"]["masked_lm"]}, hidden)
    table = self.model.unembedding(params["model"])
    vocabulary = self.model.config.vocabulary
    if self.next_sentence:
      tapped = tapped | {"next_sentence": self._pairs.apply({"params": params["heads"]["next_sentence"]}, pooled)}
    return Outputs(hidden, vocabulary_logits(vectors, table, vocabulary) + bias[:vocabulary], tapped)

  def counts(self, batch: Batch) -> dict[str, jax.Array]:
    found = {"masked_lm": jnp.sum(batch["weights"])}
    if self.next_sentence:
      found["next_sentence"] = jnp.sum(self._real(batch))
    return found

  def loss(
    self, params: Tree, frozen: Tree, carry: Tree, batch: Batch, *, rng: jax.Array | None = None
  ) -> tuple[dict[str, Mean], Tree]:
    hidden, pooled, _ = self._hidden(params, batch, rng)
    x_BxPxD = jnp.take_along_axis(hidden, batch["masked_positions"][..., None], axis=1)
    vectors, bias = self._words.apply({"params": params["heads"]["masked_lm"]}, x_BxPxD)
    loss, totals = cross_entropy(
      vectors, self.model.unembedding(params["model"]), batch["labels"], batch["weights"],
      self.model.config.vocabulary, bias_V=bias,
    )  # fmt: skip
    count = jnp.sum(batch["weights"])
    terms = {"masked_lm": Mean(loss, count), "masked_accuracy": Mean(totals["correct"], count)}
    if self.next_sentence:
      real = self._real(batch)
      scores = self._pairs.apply({"params": params["heads"]["next_sentence"]}, pooled)
      nll = -jnp.take_along_axis(jax.nn.log_softmax(scores), batch["next_sentence_label"][:, None], axis=1)[:, 0]
      right = jnp.argmax(scores, axis=1) == batch["next_sentence_label"]
      terms["next_sentence"] = Mean(jnp.sum(real * nll), jnp.sum(real))
      terms["next_accuracy"] = Mean(jnp.sum(real * right), jnp.sum(real))
    return terms, carry

  def collect(self, state, batch: Batch, rng: jax.Array) -> Iterable[Batch]:
    return (batch,)

  @property
  def _words(self) -> MaskedLMHead:
    c = self.model.config
    return MaskedLMHead(c.width, c.vocabulary, c.activation, c.epsilon, parent=None)

  @property
  def _pairs(self) -> Classifier:
    return Classifier(self.model.config.width, 2, parent=None)

  def _real(self, batch: Batch) -> jax.Array:
    """Returns 1.0 for rows that are no padding."""
    return (batch["segments"][:, 0] > 0).astype(jnp.float32)

  def _hidden(self, params: Tree, batch: Batch, rng: jax.Array | None, taps: tuple[str, ...] = ()):
    compute = cast(params["model"], jnp.dtype(self.model.config.dtype))
    rngs = {} if rng is None else {"dropout": rng}
    return self.model.apply(
      {"params": compute},
      batch["inputs"],
      batch["positions"],
      batch["segments"],
      batch["token_types"],
      taps=taps,
      rngs=rngs,
    )
