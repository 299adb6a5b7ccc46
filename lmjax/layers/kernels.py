"""What depends on the platform of the mesh's devices (which may be absent while compiling for them): attention kernels,
and what a compiler must be told.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

from lmjax.parallel.sharding import current_layout

BLOCK = 512  # tokens of queries, and of keys, that splash attention holds at a time
LANES = 128


@struct.dataclass
class Mask:
  """Who may attend to whom, said so that a kernel needs no array of length x length.

  A token attends within its own segment (packed document); if `causal`, to nothing after itself; with a `window`, to
  itself and the window - 1 tokens before; and only where `allowed` is true, an array after all, as a cache has it.
  `bias` is added to the scores: what a token thinks of another from their distance alone.
  """

  segments_BxL: jax.Array | None = None
  segments_BxM: jax.Array | None = None  # of the keys, where they are not the queries' own
  allowed_BxLxM: jax.Array | None = None
  bias_BxHxLxM: jax.Array | None = None
  causal: bool = struct.field(pytree_node=False, default=False)
  window: int | None = struct.field(pytree_node=False, default=None)

  def array(self, length: int, keys: int) -> jax.Array | None:
    """Returns mask_BxLxM of all but causality; None where everything is allowed."""
    found = [] if self.allowed_BxLxM is None else [self.allowed_BxLxM]
    if self.segments_BxL is not None:
      others = self.segments_BxL if self.segments_BxM is None else self.segments_BxM
      found.append(self.segments_BxL[:, :, None] == others[:, None, :])
    if self.window is not None:
      found.append((jnp.arange(length)[:, None] - jnp.arange(keys) < self.window)[None])
    return None if not found else jnp.logical_and(*found) if len(found) == 2 else found[0]


def platform() -> str:
  """Returns cpu, gpu or tpu: what the mesh in use is made of, else jax's default."""
  layout = current_layout()
  return layout.mesh.devices.flat[0].platform if layout else jax.default_backend()


def compiler_options() -> dict[str, str] | None:
  """Returns what `jax.jit` is given for the platform.

  On a CPU: that `materialize` is to be kept until the end, and that operations come one after the other, each with all
  threads, rather than several at a time in each other's way.
  """
  if platform() != "cpu":
    return None
  one_by_one = "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"
  return {"xla_disable_hlo_passes": "cse_barrier_expander", "xla_cpu_scheduler_type": one_by_one}


def materialize(x: jax.Array) -> jax.Array:
  """Marks an array that is read in several places and must be computed once; elsewhere than on a CPU, the identity.

  XLA's CPU compiler fuses a chain of cheap operations into each of its readers, so the residual stream, a sum over all
  earlier layers, was summed anew wherever it was read: 12 % of a GPT-2 124M step.
  """
  return jax.lax.optimization_barrier(x) if platform() == "cpu" else x


def product(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
  """jnp.einsum of two arrays, in the dtype of the first.

  On a CPU a bfloat16 product is made in float32 and rounded: XLA takes a processor's bfloat16 units only so, and is
  otherwise slower than in float32. Elsewhere the sums between devices would be of twice the bytes.
  """
  accumulate = jnp.promote_types(x.dtype, jnp.float32) if platform() == "cpu" else x.dtype
  return jnp.einsum(equation, x, y, preferred_element_type=accumulate).astype(x.dtype)


def ready(mask: Mask, length: int, keys: int | None = None) -> Mask:
  """Returns a mask as the platform's kernel reads it: for XLA's, an array made once."""
  keys = length if keys is None else keys
  if _splash_fits(length, keys, mask):
    return mask
  return Mask(allowed_BxLxM=mask.array(length, keys), bias_BxHxLxM=mask.bias_BxHxLxM, causal=mask.causal)


def attend(q_BxLxHxK: jax.Array, k_BxMxGxK: jax.Array, v_BxMxGxK: jax.Array, mask: Mask) -> jax.Array:
  """Returns softmax(q k / sqrt(K)) v, [B, L, H, K]; H / G query heads share each key/value head."""
  length, keys = q_BxLxHxK.shape[1], k_BxMxGxK.shape[1]
  if _splash_fits(length, keys, mask):
    return splash(q_BxLxHxK, k_BxMxGxK, v_BxMxGxK, mask)
  allowed = mask.array(length, keys)
  if platform() == "cpu" and length > 1:  # one token's keys are best read as the cache has them
    return softmax_attention(q_BxLxHxK, k_BxMxGxK, v_BxMxGxK, mask.bias_BxHxLxM, allowed, mask.causal)
  half = q_BxLxHxK.dtype in (jnp.bfloat16, jnp.float16)
  return jax.nn.dot_product_attention(
    q_BxLxHxK,
    k_BxMxGxK,
    v_BxMxGxK,
    bias=mask.bias_BxHxLxM,
    mask=None if allowed is None else allowed[:, None],
    is_causal=mask.causal,
    implementation="cudnn" if platform() == "gpu" and half else "xla",
  )


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def softmax_attention(q_BxLxHxK, k_BxMxGxK, v_BxMxGxK, bias_BxHxLxM, allowed_BxLxM, causal: bool) -> jax.Array:
  """`attend` with a gradient written out, on a CPU twice as fast as that of jax.nn.dot_product_attention.

  With p = softmax(s) and o = p v, ds = p (dp - sum dp p), and the sum over all keys is do . o, one vector's length
  (Dao et al., 2022, arXiv:2205.14135, appendix B.2). A token that may attend to nothing gets the mean of all values.
  """
  return _softmax_attention(q_BxLxHxK, k_BxMxGxK, v_BxMxGxK, bias_BxHxLxM, allowed_BxLxM, causal)[0]


def _heads_first(x_BxLxHxK, groups):
  """Returns [B, G, H / G * L, K]: the queries that share a key head one after the other."""
  batch, length, heads, size = x_BxLxHxK.shape
  return x_BxLxHxK.reshape(batch, length, groups, -1, size).transpose(0, 2, 3, 1, 4).reshape(batch, groups, -1, size)


def _heads_last(x_BxGxNxK, length):
  batch, groups, _, size = x_BxGxNxK.shape
  return x_BxGxNxK.reshape(batch, groups, -1, length, size).transpose(0, 3, 1, 2, 4).reshape(batch, length, -1, size)


def _softmax_attention(q, k, v, bias, allowed, causal):
  (batch, length, heads, size), (keys, groups) = q.shape, k.shape[1:3]
  q, k, v = (_heads_first(x, groups) for x in (q * size**-0.5, k, v))
  scores = jnp.einsum("bgnk,bgmk->bgnm", q, k, preferred_element_type=jnp.float32)
  scores = scores.reshape(batch, heads, length, keys)
  if bias is not None:
    scores += bias
  if causal or allowed is not None:
    reach = True if allowed is None else allowed[:, None]
    reach &= jnp.tril(jnp.ones((length, keys), bool)) if causal else True
    scores = jnp.where(reach, scores, jnp.finfo(jnp.float32).min)
  weights = materialize(jnp.exp(scores - jnp.max(scores, -1, keepdims=True)))
  weights = weights.reshape(batch, groups, -1, keys)
  total = jnp.sum(weights, -1, keepdims=True)
  weights = weights.astype(v.dtype)
  o = jnp.einsum("bgnm,bgmk->bgnk", weights, v, preferred_element_type=jnp.float32) / total
  return _heads_last(o, length).astype(v.dtype), (q, k, v, bias, weights, total, o)


def _softmax_attention_backward(causal, saved, do):
  q, k, v, bias, weights, total, o = saved
  length, groups, dtype = do.shape[1], k.shape[1], v.dtype
  do = materialize(_heads_first(do, groups) / total)
  delta = jnp.sum(do * o, -1, keepdims=True)
  do = do.astype(dtype)
  d_weights = jnp.einsum("bgnk,bgmk->bgnm", do, v, preferred_element_type=jnp.float32)
  d_scores = materialize(weights * (d_weights - delta))
  d_bias = None
  if bias is not None:
    d_bias = d_scores.reshape(do.shape[0], -1, length, k.shape[2])
    summed = [axis for axis, size in enumerate(bias.shape) if size == 1]
    d_bias = jnp.sum(d_bias, summed, keepdims=True).astype(bias.dtype)
  d_scores = d_scores.astype(dtype)
  dq = product("bgnm,bgmk->bgnk", d_scores, k) * q.shape[-1] ** -0.5
  dk = product("bgnm,bgnk->bgmk", d_scores, q)
  dv = product("bgnm,bgnk->bgmk", weights, do)
  return _heads_last(dq, length), _heads_last(dk, k.shape[2]), _heads_last(dv, k.shape[2]), d_bias, None


softmax_attention.defvjp(_softmax_attention, _softmax_attention_backward)


def _splash_fits(length: int, keys: int, mask: Mask) -> bool:
  shard = length // (1 if platform() != "tpu" or current_layout() is None else current_layout().parts("length"))
  plain = mask.allowed_BxLxM is None and mask.bias_BxHxLxM is None
  return platform() == "tpu" and plain and shard % LANES == 0 and keys % LANES == 0


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
  if layout and layout.spec("heads", shape=(heads,)) != layout.spec("groups", shape=(groups,)):
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
  kernel = make(layout.parts("heads", heads), layout.parts("length", q_BxHxLxK.shape[2]))
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


def probabilities(q_BxLxHxK: jax.Array, k_BxMxGxK: jax.Array, mask: Mask) -> jax.Array:
  """Returns the attention weights [B, H, L, M] in float32, for those who want to look at them."""
  allowed = mask.array(q_BxLxHxK.shape[1], k_BxMxGxK.shape[1])
  _, saved = _softmax_attention(q_BxLxHxK, k_BxMxGxK, k_BxMxGxK, mask.bias_BxHxLxM, allowed, mask.causal)
  *_, weights, total, _ = saved
  batch, length, heads, _ = q_BxLxHxK.shape
  return (weights / total).reshape(batch, heads, length, -1)
