"""Text about images."""

import dataclasses

import jax
import jax.numpy as jnp

from lmjax.tasks.base import Spec
from lmjax.tasks.causal_lm import CausalLM


@dataclasses.dataclass(frozen=True)
class ImageLM(CausalLM):
  """-log p(token | the image and all tokens before it), over the tokens of the text that have a weight."""

  def spec(self, batch: int, length: int) -> Spec:
    config = self.model.config
    patches = (batch, config.patches, config.patch_values)
    return super().spec(batch, length) | {
      "embeddings": jax.ShapeDtypeStruct(patches, jnp.float32),
      "embedded_mask": jax.ShapeDtypeStruct((batch, length), jnp.int32),
    }
