"""LLaVA-1.5: a CLIP vision transformer and a projector in front of a decoder of Llama's shape.

Liu et al., 2023, arXiv:2310.03744; CLIP: Radford et al., 2021, arXiv:2103.00020. The vectors of an image are in the
places of the tokens `image_token`, anywhere in a row.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmjax.layers.attention import Attention
from lmjax.layers.block import Block
from lmjax.layers.einsum import Einsum, Embed, Kernel
from lmjax.layers.kernels.mask import Mask
from lmjax.layers.mlp import ACTIVATIONS, Mlp
from lmjax.layers.norms import LayerNorm
from lmjax.layers.stack import Stack
from lmjax.models import image_decoder


@dataclasses.dataclass(frozen=True)
class Config(image_decoder.Config):
  """The shape of a decoder, of the vision transformer in front, and of the projector between them."""

  image: int = 336
  patch: int = 14
  vision_depth: int = 24
  vision_width: int = 1024
  vision_heads: int = 16
  vision_mlp: int = 4096
  vision_activation: str = "quick_gelu"
  vision_epsilon: float = 1e-5
  vision_layer: int = -2  # whose output is taken: -1 is the last one's, 0 what the first one reads
  class_vector: bool = False  # the vector of the class token is taken, too
  projector_activation: str = "gelu"
  projector_bias: bool = True
  image_token: int = 32_000  # the id in the places of an image
  image_prefix: bool = False

  negative: ClassVar = ("vision_layer",)  # the fields that may be below 0 in a config

  def __post_init__(self):
    super().__post_init__()
    if self.vision_depth < 1 or not -self.vision_depth - 1 <= self.vision_layer <= self.vision_depth:
      raise ValueError(f"vision_layer ({self.vision_layer}) is not one of the {self.vision_depth} layers")

  @property
  def vectors(self) -> int:
    """The vectors of an image that the decoder reads."""
    return self.patches + self.class_vector


class Vision(nn.Module):
  """CLIP's vision transformer, of which one layer's output is taken, and a projector of two layers."""

  config: Config

  @nn.compact
  def __call__(self, patches_BxIxC: jax.Array) -> jax.Array:
    """Returns vectors [B, I, D] of patches [B, I, C]."""
    c, dtype, width = self.config, patches_BxIxC.dtype, self.config.vision_width
    norm = partial(LayerNorm, epsilon=c.vision_epsilon)
    project = Kernel((None, "width"), (c.patch_values, width), c.patch_values**-0.5, name="project")
    first = Embed(1, width, "positions", name="class_vector")(jnp.zeros((len(patches_BxIxC), 1), jnp.int32), dtype)
    x_BxLxD = jnp.concatenate([first, patches_BxIxC @ project(dtype)], axis=1)
    numbers = jnp.arange(x_BxLxD.shape[1])[None]
    x_BxLxD += Embed(c.patches + 1, width, "positions", name="positions")(numbers, dtype)
    x_BxLxD = norm(name="first_norm")(x_BxLxD)
    heads = dict(heads=c.vision_heads, kv_heads=c.vision_heads, head_size=width // c.vision_heads)
    mlp = partial(Mlp, width=width, mlp=c.vision_mlp, activation=c.vision_activation)
    block = partial(Block, norm=norm, attention=partial(Attention, **heads), mlp=mlp)
    stack = Stack(block, c.vision_depth, c.scan, c.remat, name="stack")
    positions_BxL = jnp.broadcast_to(numbers, x_BxLxD.shape[:2])
    last_BxLxD, taps = stack(x_BxLxD, positions_BxL, Mask(), ("hidden",))
    norm(name="last_norm")(last_BxLxD)  # has parameters, which a folder keeps, and no effect
    number = c.vision_layer % (c.vision_depth + 1)
    x_BxLxD = taps["hidden"][number - 1] if number else x_BxLxD
    x_BxLxD = x_BxLxD if c.class_vector else x_BxLxD[:, 1:]
    x_BxLxD = Einsum("BLD,DE->BLE", {"D": width, "E": c.width}, c.projector_bias, name="projector_in")(x_BxLxD)
    x_BxLxD = ACTIVATIONS[c.projector_activation](x_BxLxD)
    return Einsum("BLD,DE->BLE", {"D": c.width, "E": c.width}, c.projector_bias, name="projector_out")(x_BxLxD)


class Llava(image_decoder.ImageDecoder):
  """A decoder that reads images in the places of `image_token`, see `ImageDecoder`."""

  config: Config
  tower = Vision

  def places(self, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Returns which tokens [B, L] are those of an image."""
    return batch["inputs"] == self.config.image_token
