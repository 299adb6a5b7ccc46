"""Tensors under the names of a family's tables, whatever a wrapper, an old version or a shared table made of them."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from lmjax.storage.huggingface.families.base import Family, note
from lmjax.storage.huggingface.weights import WeightMap
from lmjax.utils.errors import UserError

# Parts of names that torch.compile, DataParallel and FSDP add, anywhere.
WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
OLD = {"gamma": "weight", "beta": "bias"}  # of norms, in the first BERTs
ROWS = 4096  # compared at a time


class Renamed:
  """Tensors by the names of the tables.

  names: {name in the tables: name in the files}. prefix: what the files have before the names of the model without
  heads.
  """

  def __init__(self, tensors: Any, names: dict[str, str], prefix: str):
    self.tensors, self.names, self.prefix = tensors, names, prefix

  def __iter__(self) -> Iterator[str]:
    return iter(self.names)

  def __contains__(self, name: str) -> bool:
    return name in self.names

  def __getitem__(self, name: str) -> np.ndarray:
    return self.tensors[self.names[name]]

  def shape(self, name: str) -> tuple[int, ...]:
    """Returns the shape of a tensor."""
    return self.tensors.shape(self.names[name])

  def dtype(self, name: str) -> np.dtype:
    """Returns the type of a tensor."""
    return self.tensors.dtype(self.names[name])

  def same(self, one: str, other: str) -> bool:
    """Returns whether two tensors have the same values, which are read."""
    a, b = self[one], self[other]
    if a.shape != b.shape:
      return False
    return all(np.array_equal(a[i : i + ROWS], b[i : i + ROWS]) for i in range(0, len(a), ROWS))

  def rename(self, name: str, new: str) -> None:
    """Gives a tensor another name in the tables."""
    self.names[new] = self.names.pop(name)

  def drop(self, name: str) -> None:
    """Removes a tensor that says nothing new."""
    del self.names[name]


def rename(tensors: Any, family: Family, table: Iterable[WeightMap], where: object) -> Renamed:
  """Returns the tensors of a folder by the names of a family's tables.

  Parts that wrappers add are left out, and so are the beginnings that the model's and its heads' names have in common.

  Args:
    tensors: of the folder, by their names in the files.
    table: of the model without heads.

  Raises:
    UserError: two tensors are the same one.
  """
  plain = {name: family.spelling(_plain(name)) for name in tensors}
  start = _start(set(plain.values()), [weight.hf.format(0, 0) for weight in table])
  known = sorted({prefix for prefix in family.prefix.values() if prefix}, key=len, reverse=True)
  inner = next((p for p in known if start == p or start.endswith("." + p)), "")
  outer = start[: len(start) - len(inner)]
  names: dict[str, str] = {}
  for stored, name in plain.items():
    name = name.removeprefix(outer).removeprefix(inner)
    if name in names:
      raise UserError(f"{where}: {names[name]} and {stored} are the same tensor of the model")
    names[name] = stored
  return Renamed(tensors, names, start)


def _plain(name: str) -> str:
  *parents, last = (part for part in name.split(".") if part not in WRAPPERS) if "." in name else (name,)
  return ".".join([*parents, OLD.get(last, last)])


def _start(names: set[str], anchors: list[str]) -> str:
  """Returns what comes before the model's names: the shortest beginning of the first anchor that is there."""
  for anchor in anchors:
    starts = [name[: -len(anchor)] for name in names if name == anchor or name.endswith("." + anchor)]
    if starts:
      return min(starts, key=len)
  return ""


def resolve_copies(tensors: Renamed, family: Family, where: object) -> None:
  """Removes what is stored under several names, and gives what is stored under another name its own.

  Raises:
    UserError: two copies of a tensor differ, or there are two of which a model has one.
  """
  for other, name in family.renamed.items():
    if other in tensors and name in tensors:
      raise UserError(
        f"{where}: {tensors.names[other]} and {tensors.names[name]} are two names of one part of a {family.hf_prefix} "
        "model; remove one of them"
      )
    if other in tensors:
      tensors.rename(other, name)
  for other, name in family.copies.items():
    if other in tensors and name not in tensors:
      tensors.rename(other, name)
    elif other in tensors:
      if not tensors.same(other, name):
        raise UserError(
          f"{where}: {tensors.names[other]} and {tensors.names[name]} are one tensor of a {family.hf_prefix} model, "
          "but have different values"
        )
      tensors.drop(other)


def resolve_bias(tensors: Renamed, family: Family, config: Any, where: object) -> None:
  """Removes the second bias of the tokens' scores; where the two differ, transformers uses that of the linear layer."""
  other = family.unembed_bias
  if not other or other not in tensors:
    return
  name = next(weight.hf for weight in family.heads(config)["masked_lm"] if weight.lmjax == "masked_lm/bias")
  if name in tensors:
    if config.tie_embeddings and not tensors.same(other, name):
      note(f"{where}: {tensors.names[other]} and {tensors.names[name]} differ; the first is used")
    tensors.drop(name)
  tensors.rename(other, name)


def families_of(tensors: Iterable[str], families: dict[str, Family], config: Any) -> list[str]:
  """Returns the `model_type`s whose tensors a folder has; empty where it has those of none.

  Of several, those that know the most of the names, heads and prefix included.
  """
  names = {_plain(name) for name in tensors}
  counts: dict[str, int] = {}
  for kind, family in families.items():
    settings = config(family)
    decodes = any(".decoder." in f".{name}" for name in names)
    # A model may have fewer layers than by default.
    anchors = [w.hf.format(0, 0) for w in family.weights(settings) if not re.match("layers_[1-9]", w.lmjax)]
    anchors = [anchor for anchor in anchors if decodes or not anchor.startswith("decoder.")]
    start = _start(names, anchors)
    heads = {weight.hf for table in family.heads(settings).values() for weight in table} | {family.unembed}
    known = sum(start + anchor in names for anchor in anchors)
    if known < len(anchors) - 2:  # a table that is stored under another name, a pooler that is left out
      continue
    counts[kind] = known + len(heads & names) + (start in family.prefix.values() and start != "")
  return [kind for kind, count in counts.items() if count == max(counts.values())]
