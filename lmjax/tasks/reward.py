"""Reward models: a number for an answer, from comparisons."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmjax.data.batch import Batch
from lmjax.models.heads import Classifier
from lmjax.tasks.base import FrozenModel, Outputs, Spec
from lmjax.tasks.preferences import Comparisons, segments_of
from lmjax.utils.metrics import Mean
from lmjax.utils.pytree import Tree


@dataclasses.dataclass(frozen=True)
class RewardModel(Comparisons):
  """Learns which of several answers to a prompt people prefer (Ouyang et al., 2022, arXiv:2203.02155, equation 1).

    loss = -1 / C(K, 2) sum over pairs of log sigmoid(r(better) - r(worse)), the mean over groups of K answers

  r is what the head `reward` computes of the final vector of an answer's last token, which a decoder reads; of the
  first token ([CLS]) of an encoder. start: its id. target_length: of the answers that the decoder of an encoder-decoder
  reads, after its start token. The data sets both. Metrics: accuracy, the fraction of
  pairs that r ranks right; length_accuracy, that of preferring the longer answer, where equal lengths count one half.
  """

  start: int = 0
  target_length: int = 0

  def __post_init__(self):
    """Any kind of model will do."""

  def spec(self, batch: int, length: int) -> Spec:
    spec = super().spec(batch, length)
    if self.model.kind != "encoder_decoder":
      return spec
    targets = Comparisons.spec(self, batch, self.target_length or length)
    both = {f"decoder_{key}": targets[key] for key in ("inputs", "positions", "segments")}
    return spec | both | {key: targets[key] for key in ("targets", "weights")}

  def heads(self) -> dict[str, nn.Module]:
    return {"reward": Classifier(1, bias=False, parent=None)}

  def forward(self, params: Tree, batch: Batch, *, rng: jax.Array | None = None, taps: tuple[str, ...] = ()) -> Outputs:
    """Returns the final vectors, and as scores the rewards [B, groups * answers], 0 where there is no answer."""
    hidden = self.hidden(params, batch, rng=rng, taps=taps)
    segments_BxL = segments_of(batch)
    read_BxL = segments_BxL != jnp.pad(segments_BxL, ((0, 0), (0, 1)))[:, 1:]
    if self.model.kind == "encoder":
      read_BxL = batch["positions"] == 0
    numbers_N = jnp.arange(1, 1 + self.groups * self.answers)
    at_BxLxN = read_BxL[..., None] & (segments_BxL[..., None] == numbers_N[None, None])
    x_BxNxD = jnp.einsum("bln,bld->bnd", at_BxLxN.astype(hidden.tokens.dtype), hidden.tokens)
    return Outputs(hidden.tokens, self.head("reward", params, x_BxNxD)[..., 0], hidden.taps)

  def loss(
    self, params: Tree, frozen: Mapping[str, FrozenModel], carry: Tree, batch: Batch, *, rng: jax.Array | None = None
  ) -> tuple[dict[str, Mean], Tree]:
    rewards = self.forward(params, batch, rng=rng).logits.reshape(-1, self.groups, self.answers)
    sizes = self.sums(batch, batch["weights"])
    (pairs, groups), difference, longer = self.pairs(sizes > 0), self.differences(rewards), self.differences(sizes)
    per_pair = {
      "loss": -jax.nn.log_sigmoid(difference),
      "accuracy": (difference > 0).astype(jnp.float32),
      "length_accuracy": (1 + jnp.sign(longer)) / 2,
      "reward_margin": difference,
    }
    means = {name: Mean(jnp.sum(pairs * values), groups) for name, values in per_pair.items()}
    return means | {"reward": Mean(jnp.sum(rewards), jnp.sum((sizes > 0).astype(jnp.float32)))}, carry
