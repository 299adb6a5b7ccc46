"""A decoder that reads images, too: the vectors of an image are in the places of the first tokens of a row."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmjax.layers.attention import Attention
from lmjax.layers.block import Block
from lmjax.layers.cache import Cache
from lmjax.layers.einsum import Embed, Kernel
from lmjax.layers.kernels.mask import Mask
from lmjax.layers.mlp import Mlp
from lmjax.layers.norms import LayerNorm
from lmjax.layers.stack import Stack
from lmjax.models import decoder
from lmjax.models.base import Hidden
from lmjax.parallel.sharding import constrain

CHANNELS = 3  # red, green, blue


@dataclasses.dataclass(frozen=True)
class Config(decoder.Config):
  """The shape of a decoder, and of the images that it reads."""

  image: int = 32  # pixels of a side of an image
  patch: int = 4  # pixels of a side of a patch, a divisor of `image`
  vision_depth: int = 0  # layers of a vision transformer; 0: the decoder reads the projected patches themselves
  vision_width: int = 0  # of the vision transformer; 0: as the decoder's
  vision_heads: int = 4  # of the vision transformer
  image_prefix: bool = True  # the vectors of an image attend to each other in both directions

  def __post_init__(self):
    super().__post_init__()
    if self.patch < 1 or self.image < self.patch or self.image % self.patch:
      raise ValueError(f"image ({self.image}) must be a multiple of patch ({self.patch}), and both at least 1")
    if self.vision_depth < 0 or self.vision_width < 0 or self.vision_heads < 1:
      raise ValueError("vision_depth and vision_width are at least 0, and vision_heads at least 1")
    object.__setattr__(self, "vision_width", self.vision_width or self.width)
    if self.vision_width % self.vision_heads:
      raise ValueError(f"vision_width ({self.vision_width}) must be a multiple of vision_heads ({self.vision_heads})")
    if self.patches >= self.length:
      raise ValueError(f"an image has {self.patches} patches, which leave no space for text in {self.length} tokens")

  @property
  def patches(self) -> int:
    """The vectors of an image."""
    return (self.image // self.patch) ** 2

  @property
  def vectors(self) -> int:
    """The vectors of an image that the decoder reads, which have one place each."""
    return self.patches

  @property
  def patch_values(self) -> int:
    """The numbers of a patch."""
    return self.patch**2 * CHANNELS


class Vision(nn.Module):
  """Images as vectors: projected patches with positions, which a vision transformer may read before the decoder does.

  Dosovitskiy et al., 2021, arXiv:2010.11929; the vectors of all patches are kept, instead of one for the image.
  """

  config: Config

  @nn.compact
  def __call__(self, patches_BxIxC: jax.Array) -> jax.Array:
    """Returns vectors [B, I, D] of patches [B, I, C]."""
    c, dtype = self.config, patches_BxIxC.dtype
    width = c.vision_width if c.vision_depth else c.width
    project = Kernel((None, "width"), (c.patch_values, width), c.patch_values**-0.5, name="project")
    numbers = jnp.arange(c.patches)[None]
    positions = Embed(c.patches, width, "positions", name="positions")
    x_BxIxD = patches_BxIxC @ project(dtype) + positions(numbers, dtype)
    if not c.vision_depth:
      return x_BxIxD
    norm = partial(LayerNorm, epsilon=c.epsilon)
    head_size = width // c.vision_heads
    attention = partial(Attention, heads=c.vision_heads, kv_heads=c.vision_heads, head_size=head_size)
    block = partial(Block, norm=norm, attention=attention, mlp=partial(Mlp, width=width, mlp=4 * width))
    positions_BxI = jnp.broadcast_to(numbers, x_BxIxD.shape[:2])
    x_BxIxD, _ = Stack(block, c.vision_depth, c.scan, c.remat, name="stack")(x_BxIxD, positions_BxI, Mask())
    out = Kernel((None, "width"), (width, c.width), width**-0.5, name="out")
    return norm(name="norm")(x_BxIxD) @ out(dtype)


class ImageDecoder(decoder.Decoder):
  """A decoder whose batch may have `embeddings`, patches of an image, for the tokens with a 1 in `embedded_mask`.

  Without a mask, they are for the first tokens.
  """

  config: Config
  tower: ClassVar[Callable[[Any], nn.Module]] = Vision

  def setup(self):
    super().setup()
    self.vision = self.tower(self.config)

  def __call__(self, batch: Mapping[str, jax.Array], taps: tuple[str, ...] = ()) -> Hidden:
    """Returns the final vectors [B, L, D] and what was tapped, see `Decoder`."""
    return super().__call__(self._with_prefix(batch), taps)

  def prefill(self, batch: Mapping[str, jax.Array], max_tokens: int) -> tuple[jax.Array, Cache]:
    """Returns the final vectors [B, L, D] of prompts and their cache; an image has the places of the first tokens."""
    return super().prefill(self._with_prefix(batch), max_tokens)

  def places(self, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Returns which tokens [B, L] of prompts are those of an image: the first ones that are no padding."""
    valid_BxL = batch["segments"] > 0
    return valid_BxL & (jnp.cumsum(valid_BxL, axis=1) <= self.config.vectors)

  def embed_batch(self, batch: Mapping[str, jax.Array], positions_BxL: jax.Array) -> jax.Array:
    """Returns the input [B, L, D] of the first layer: tokens, and the vectors of images in their places, in order."""
    x_BxLxD = super().embed_batch(batch, positions_BxL)
    if "embeddings" not in batch:  # text alone
      return x_BxLxD
    vectors_BxIxD = self.vision(batch["embeddings"].astype(x_BxLxD.dtype))
    mask_BxL = batch["embedded_mask"] > 0
    number_BxL = jnp.clip(jnp.cumsum(mask_BxL, axis=1) - 1, 0, self.config.vectors - 1)
    placed_BxLxD = jnp.take_along_axis(vectors_BxIxD, number_BxL[..., None], axis=1)
    return constrain(jnp.where(mask_BxL[..., None], placed_BxLxD, x_BxLxD), "batch", "residual_length", None)

  def _with_prefix(self, batch: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
    if "embeddings" in batch and "embedded_mask" not in batch:
      batch = {**batch, "embedded_mask": self.places(batch)}
    if self.config.image_prefix and "embedded_mask" in batch and "prefix" not in batch:
      return {**batch, "prefix": batch["embedded_mask"]}
    return batch
