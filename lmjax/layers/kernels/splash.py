"""jax's Pallas splash attention for TPUs, under a mesh."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from lmjax.layers.backend import LANES
from lmjax.layers.kernels.mask import Mask
from lmjax.parallel.sharding import current_layout

BLOCK = 512  # tokens of queries, and of keys, that splash attention holds at a time


def splash(
  q_BxLxHxK: jax.Array, k_BxMxGxK: jax.Array, v_BxMxGxK: jax.Array, mask: Mask, interpret: bool = False
) -> jax.Array:
  """`attend` by jax's Pallas splash attention for TPUs: no scores in memory, blocks that the mask empties are skipped.

  Each device takes its own rows, heads and queries; keys and values are gathered along the length.

  Args:
    interpret: runs the kernel on any platform, slowly.
  """
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels

  layout, heads, groups = current_layout(), q_BxLxHxK.shape[2], k_BxMxGxK.shape[2]
  if layout and layout.spec("heads", shape=(heads,)) != layout.spec("kv_heads", shape=(groups,)):
    k_BxMxGxK, v_BxMxGxK = (jnp.repeat(x, heads // groups, axis=2) for x in (k_BxMxGxK, v_BxMxGxK))
  q_BxHxLxK = (q_BxLxHxK * q_BxLxHxK.shape[-1] ** -0.5).swapaxes(1, 2)
  k_BxGxMxK, v_BxGxMxK = k_BxMxGxK.swapaxes(1, 2), v_BxMxGxK.swapaxes(1, 2)
  segments = None
  if mask.segments_BxL is not None:
    others = mask.segments_BxL if mask.segments_BxM is None else mask.segments_BxM
    segments = kernels.SegmentIds(mask.segments_BxL, others)
  make = _splash_maker(heads, q_BxHxLxK.shape[2], k_BxGxMxK.shape[2], mask, interpret)

  def local(kernel, q, k, v, segments):
    return jax.vmap(kernel)(q, k, v, segments)

  if layout is None or layout.mesh.size == 1:
    return local(make(1, 1), q_BxHxLxK, k_BxGxMxK, v_BxGxMxK, segments).swapaxes(1, 2)
  q_spec = layout.spec("batch", "heads", "length", None, shape=q_BxHxLxK.shape)
  k_spec = PartitionSpec(*q_spec[:2], None, None)
  kernel = make(layout.num_shards("heads", heads), layout.num_shards("length", q_BxHxLxK.shape[2]))
  split = jax.shard_map(
    local,
    mesh=layout.mesh,
    in_specs=(
      kernel.manual_sharding_spec(NamedSharding(layout.mesh, PartitionSpec(q_spec[1], q_spec[2]))),
      q_spec,
      k_spec,
      k_spec,
      segments and kernels.SegmentIds(PartitionSpec(q_spec[0], q_spec[2]), PartitionSpec(q_spec[0], None)),
    ),
    out_specs=q_spec,
    check_vma=False,
  )
  return split(kernel, q_BxHxLxK, k_BxGxMxK, v_BxGxMxK, segments).swapaxes(1, 2)


def _splash_maker(heads: int, length: int, keys: int, mask: Mask, interpret: bool):
  """Returns make(parts of the heads, parts of the queries) -> the kernel."""
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

  one = masks.CausalMask((length, keys)) if mask.causal else masks.FullMask((length, keys))
  if mask.window is not None:
    ahead = 0 if mask.causal else None
    one = masks.LocalMask((length, keys), (mask.window - 1, ahead), 0)

  def make(head_parts: int, query_parts: int):
    q, kv = _block(length // query_parts), _block(keys)
    sizes = kernels.BlockSizes(
      block_q=q, block_kv=kv, block_kv_compute=kv, block_q_dkv=q, block_kv_dkv=kv, block_kv_dkv_compute=kv,
      block_q_dq=q, block_kv_dq=kv,
    )  # fmt: skip
    return kernels.make_splash_mha(
      masks.MultiHeadMask([one] * heads),
      block_sizes=sizes,
      head_shards=head_parts,
      q_seq_shards=query_parts,
      interpret=interpret,
    )

  return make


def _block(length: int) -> int:
  """Returns the largest multiple of 128 up to 512 that divides a length."""
  return next(size for size in range(min(BLOCK, length), 0, -LANES) if length % size == 0)
