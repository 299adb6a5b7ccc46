"""Rows of a vocabulary leave the tables that have them, as the tokens of a smaller tokenizer do."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.compression.quantize import QTensor
from lmjax.layers.einsum import padded
from lmjax.parallel.sharding import LogicallyPartitioned
from lmjax.utils.errors import UserError


def keep_rows(
  params: Mapping[str, LogicallyPartitioned], kept: Sequence[int], vocabulary: int
) -> dict[str, LogicallyPartitioned]:
  """Returns the parameters with some rows of every vocabulary axis, which is padded as that of a new model is.

  Args:
    params: arrays with their axis names, by path names.
    kept: the ids whose rows stay, in their new order.
    vocabulary: of the model before.

  Raises:
    UserError: an id is not one of the model, which is quantized or has no vocabulary.
  """
  if kept[-1] >= vocabulary:
    raise UserError(f"compress: the tokenizer has the id {kept[-1]:,}, and the model a vocabulary of {vocabulary:,}")
  if any(isinstance(box.value, QTensor) for box in params.values()):
    raise UserError("compress: the model is quantized; cut its vocabulary before it is quantized")
  if not any("vocabulary" in box.names for box in params.values()):
    raise UserError("compress: this model has no vocabulary whose rows could leave it")
  index, size = np.asarray(kept), padded(len(kept))

  def rows(box: LogicallyPartitioned) -> LogicallyPartitioned:
    if "vocabulary" not in box.names:
      return box
    axis = box.names.index("vocabulary")
    value: jax.Array = jnp.take(box.value, index, axis=axis)
    length = size if box.value.shape[axis] == padded(vocabulary) else len(kept)
    widths = [(0, length - len(kept)) if i == axis else (0, 0) for i in range(value.ndim)]
    return box.replace(value=jnp.pad(value, widths), rows=None if box.rows is None else len(kept))

  return {name: rows(box) for name, box in params.items()}
