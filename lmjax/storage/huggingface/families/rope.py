"""Rotary positions in config.json: `rope_parameters`, and `rope_theta` and `rope_scaling` as they were before."""

import dataclasses
import math
from typing import Any

from lmjax.layers.positions import Rotary
from lmjax.utils.errors import UserError
from lmjax.utils.fields import Fields

THETA = 10_000.0
KINDS = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
OLD_KINDS = {"su": "longrope"}  # Phi-3's first name
POSITIVE = 1e-6


def read(
  fields: Fields, length: int, head_size: int, theta: float = THETA, fraction: float | None = None,
  theta_key: str = "rope_theta", fraction_key: str = "partial_rotary_factor", part: str = "",
  original: int | None = None, kinds: tuple[str, ...] = (*KINDS, *OLD_KINDS),
) -> Rotary:  # fmt: skip
  """Returns the rotary positions of a config.json; the old `rope_scaling` goes before `rope_parameters`.

  Args:
    length: max_position_embeddings.
    theta: the base where config.json has none. fraction: of a head's elements that are turned, where config.json does
      not say it; None in families that turn all.
    theta_key, fraction_key: the names of both outside of `rope_parameters`.
    original: original_max_position_embeddings where config.json has none; None is what `rope_parameters` has.
    kinds: what is supported.
    part: the kind of layers whose parameters are wanted, where `rope_parameters` has an object for each.

  Raises:
    UserError: the positions are not supported; the key is named.
  """
  old, new = (fields.section(key, {}) for key in ("rope_scaling", "rope_parameters"))
  rope = new.section(part, {}) if part else old if old.values else new
  if part == "full_attention" and old.values:
    rope = Fields(rope.values | old.values, fields.where, "rope_scaling.")
  theta = rope.number("rope_theta", fields.number(theta_key, theta, POSITIVE), POSITIVE)
  turned = rope.number("partial_rotary_factor", fields.number(fraction_key, fraction or 1.0))
  if (turned != 1 and fraction is None) or not 0 < turned <= 1 or int(turned * head_size) < 2:
    raise UserError(
      f"{fields.where}: {fraction_key} {turned:g} is not supported with heads of {head_size}, the width divided by "
      "num_attention_heads"
    )
  head_size = int(turned * head_size)
  kind = rope.text("rope_type", rope.text("type", "default", kinds), kinds)
  rope.get("type", None)
  rotary = _of_kind(OLD_KINDS.get(kind, kind), rope, theta, length, fields, head_size, original)
  fields.taken.update(("rope_scaling", "rope_parameters", "rope_theta", "original_max_position_embeddings"))
  rotary = dataclasses.replace(rotary, fraction=turned)
  unknown = [key for key in rope.unused() if rope.values[key] is not None]
  if unknown:
    raise UserError(f"{fields.where}: rope_parameters: {', '.join(unknown)} is not supported with {kind!r}")
  return rotary


def _of_kind(
  kind: str, rope: Fields, theta: float, length: int, fields: Fields, head_size: int, default: int | None
) -> Rotary:
  if kind == "default":
    for key in ("factor", "original_max_position_embeddings", "attention_factor"):
      rope.get(key, None)  # of no effect here
    return Rotary(theta)
  ratio = None
  if kind in ("linear", "dynamic"):
    rope.get("original_max_position_embeddings", None)
  else:
    original = rope.integer("original_max_position_embeddings", length, least=2)
    original = fields.integer("original_max_position_embeddings", default or original, least=2)
    ratio = length / original
  needed: dict[str, Any] = {} if ratio is None or kind == "llama3" else {"default": ratio}
  factor = rope.number("factor", least=POSITIVE, **needed)
  if kind == "linear":
    return Rotary(theta, "linear", factor)
  if kind == "dynamic" and head_size < 4:
    raise UserError(f"{fields.where}: head_dim {head_size} is not supported with 'dynamic'")
  if kind == "dynamic":
    return Rotary(theta, "dynamic", factor, original=length)
  if kind == "llama3":
    low, high = (rope.number(key, least=POSITIVE) for key in ("low_freq_factor", "high_freq_factor"))
    if low >= high:
      raise UserError(f"{fields.where}: rope_parameters: low_freq_factor must be less than high_freq_factor")
    return Rotary(theta, "llama3", factor, low, high, original)
  given = rope.number("attention_factor", None, 0.0)
  if kind == "longrope":
    short, long = (rope.sequence(key, (int, float)) for key in ("short_factor", "long_factor"))
    if {len(short), len(long)} != {head_size // 2}:
      raise UserError(f"{fields.where}: rope_parameters: short_factor and long_factor need {head_size // 2} numbers")
    amplitude = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    values = dict(short=tuple(map(float, short)), long=tuple(map(float, long)))
    return Rotary(
      theta, "longrope", factor, original=original, amplitude=amplitude if given is None else given, **values
    )
  scales = [rope.number(key, None, 0.0) for key in ("mscale", "mscale_all_dim")]
  amplitude = _mscale(factor, 1.0) if not all(scales) else _mscale(factor, scales[0]) / _mscale(factor, scales[1])
  fast, slow = rope.number("beta_fast", None, 0.0) or 32.0, rope.number("beta_slow", None, 0.0) or 1.0
  if theta <= 1 or head_size < 4:
    raise UserError(f"{fields.where}: rope_theta {theta:g} with heads of {head_size} is not supported with 'yarn'")
  return Rotary(
    theta, "yarn", factor, slow, fast, original, amplitude=amplitude if given is None else given,
    truncate=rope.boolean("truncate", True),
  )  # fmt: skip


def _mscale(factor: float, scale: float) -> float:
  return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def write(rotary: Rotary | None) -> dict[str, Any]:
  """Returns `rope_parameters`; `read` is the inverse. None, of a model with learned positions, has none."""
  if rotary is None:
    return {}
  kind = "default" if rotary.scaling == "none" else rotary.scaling
  rope: dict[str, Any] = {"rope_theta": rotary.base, "rope_type": kind}
  if rotary.fraction != 1:
    rope |= {"partial_rotary_factor": rotary.fraction}
  if kind != "default":
    rope |= {"factor": rotary.factor}
  if kind in ("llama3", "yarn", "longrope"):
    rope |= {"original_max_position_embeddings": rotary.original}
  if kind == "llama3":
    rope |= dict(low_freq_factor=rotary.low, high_freq_factor=rotary.high)
  if kind in ("yarn", "longrope"):
    rope |= {"attention_factor": rotary.amplitude}
  if kind == "yarn":
    rope |= dict(beta_slow=rotary.low, beta_fast=rotary.high, truncate=rotary.truncate)
  if kind == "longrope":
    rope |= dict(short_factor=list(rotary.short), long_factor=list(rotary.long))
  return rope
