"""The methods that the options of `lmjax compress` name."""

import argparse
from typing import Any

from lmjax.compression.awq import AWQ
from lmjax.compression.gptq import GPTQ
from lmjax.compression.method import Method
from lmjax.compression.one_shot import OneShot
from lmjax.compression.quantize import Quantize
from lmjax.compression.remove import Remove
from lmjax.compression.same_zeros import SameZeros
from lmjax.compression.smooth_quant import SmoothQuant
from lmjax.utils.errors import UserError

TOKENS = 8192  # of the calibration text, by default


def choose(options: argparse.Namespace) -> tuple[list[Remove], list[Method]]:
  """Returns the removals, and the methods in the order in which they are applied.

  Raises:
    UserError: an option has no effect, contradicts another, or has a value that it cannot have.
  """
  if options.score and not options.remove:
    raise UserError("compress: --score needs --remove")
  if not options.prune and (options.sparsity is not None or options.structure is not None):
    raise UserError("compress: --sparsity and --structure need --prune")
  unset = dict.fromkeys(("asymmetric", "gptq", "awq", "activations", "smooth"), False)
  for name, default in (unset | dict(group=0, tables="int8", table_group=64)).items():
    if not options.quantize and getattr(options, name) != default:
      raise UserError(f"compress: --{name} needs --quantize")
  try:
    removals, methods = _removals(options), _methods(options)
  except ValueError as error:
    raise UserError(f"compress: {error}") from error
  if not (methods or removals or options.vocabulary):
    raise UserError("compress: give --quantize or --prune, or --remove, --mask or --vocabulary")
  if options.vocabulary and (options.calibration or options.score == "taylor"):
    raise UserError("compress: cut the --vocabulary first, by a command of its own: other methods read its tokens")
  needing = any(method.needs_inputs for method in methods)
  if needing and not options.calibration:
    raise UserError("compress: --prune wanda, sparsegpt, --gptq, --awq, --smooth need --calibration, a text file")
  if options.calibration and not needing and not any(removal.needs_batches for removal in removals):
    raise UserError("compress: --calibration is for --prune wanda, sparsegpt, --gptq, --awq, --smooth, --score taylor")
  reads = needing or any(removal.needs_batches for removal in removals)
  if options.tokens != TOKENS and not reads:
    raise UserError(f"compress: --tokens {options.tokens} has no effect without --calibration or --score taylor")
  if options.seed and not reads and "random" not in (options.score, options.prune):
    raise UserError(f"compress: --seed {options.seed} has no effect: nothing here is random")
  return removals, methods


def _removals(options: argparse.Namespace) -> list[Remove]:
  removals: dict[str, Remove] = {}
  for text in options.remove:
    what, _, fraction = text.partition("=")
    try:
      value = float(fraction)
    except ValueError:
      raise UserError(f"compress: --remove {text}: give WHAT=FRACTION, such as heads=0.5") from None
    if what in removals:
      raise UserError(f"compress: --remove {what} is given twice")
    removals[what] = Remove(what, value, options.score or "magnitude", options.seed)
  return list(removals.values())


def _methods(options: argparse.Namespace) -> list[Method]:
  methods: list[Method] = []
  targets: dict[str, Any] = {} if options.targets is None else {"targets": options.targets}
  if options.mask:
    methods.append(SameZeros(options.mask, **targets))
  if options.prune:
    structure = options.structure or ("output" if options.prune == "wanda" else "layer")
    if ":" in structure and options.sparsity is not None:
      raise UserError(f"compress: {structure} has a sparsity of its own: leave out --sparsity")
    sparsity = 0.5 if options.sparsity is None else options.sparsity
    methods.append(OneShot(sparsity, options.prune, structure, seed=options.seed, **targets))
  if options.quantize:
    tables = "" if options.tables == "none" else options.tables
    if options.smooth and (options.awq or options.gptq):
      raise UserError("compress: --smooth is a way of its own: leave out --awq and --gptq")
    method = SmoothQuant if options.smooth else AWQ if options.awq else GPTQ if options.gptq else Quantize
    targets |= {"gptq": options.gptq} if options.awq else {}
    targets |= {"activations": True} if options.activations else {}
    methods.append(
      method(options.quantize, options.group, not options.asymmetric, tables, options.table_group, **targets)
    )
  return methods
