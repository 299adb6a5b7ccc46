"""The parameters of a checkpoint, whatever wrote it: listed from metadata alone, read one by one when wanted."""

import dataclasses
import html
import math
import re
from collections.abc import Iterable
from typing import Protocol

import jax
import numpy as np
from etils import epath
from rich.table import Table as Drawn

from lmjax import checkpoint
from lmjax import experiment as experiments
from lmjax.interop import bilm, huggingface
from lmjax.interop.safetensors import Tensors
from lmjax.parallel.sharding import Named
from lmjax.utils import pytree
from lmjax.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Leaf:
  """One parameter as metadata has it."""

  name: str
  shape: tuple[int, ...]
  dtype: str
  sharding: str = ""  # the mesh axes that its dimensions were split over when it was saved
  axes: str = ""  # its dimensions' logical names, where a config says what the model is

  @property
  def count(self) -> int:
    return math.prod(self.shape)

  @property
  def bytes(self) -> int:
    return self.count * np.dtype(self.dtype).itemsize


class Saved(Protocol):
  """Parameters on disk."""

  leaves: dict[str, Leaf]

  def read(self, name: str) -> np.ndarray:
    """Returns one parameter's values."""


class SavedRun:
  """The parameters of a run folder's checkpoint."""

  def __init__(self, folder: epath.PathLike, step: int | None = None):
    self.folder = folder
    tree, self.step = checkpoint.described(folder, step)
    self.leaves, axes = {}, _axes(folder)
    for name, leaf in pytree.named_leaves(tree).items():
      spec = getattr(getattr(leaf, "sharding_metadata", None), "partition_spec", None) or ()
      split = ", ".join(str(axis) for axis in spec if axis)
      named = axes.get(name, ())
      said = ", ".join(map(str, named)) if len(named) == len(leaf.shape) else ""
      self.leaves[name] = Leaf(name, tuple(leaf.shape), np.dtype(leaf.dtype).name, split, said)

  def read(self, name: str) -> np.ndarray:
    wanted: dict = {}
    *parents, last = name.split("/")
    inner = wanted
    for parent in parents:
      inner = inner.setdefault(parent, {})
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    leaf = self.leaves[name]
    inner[last] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
    found, _ = checkpoint.load(self.folder, {"params": wanted}, self.step)
    return np.asarray(jax.tree.leaves(found)[0])


def run_of(path: epath.PathLike) -> epath.Path:
  """Returns the run folder that a path is, or that a checkpoint lies in."""
  return epath.Path(path).absolute().parent.parent if checkpoint.is_bare(path) else epath.Path(path)


def _axes(folder: epath.PathLike) -> dict[str, tuple[str | None, ...]]:
  """Returns the logical axes of a run's parameters; nothing where its config is not there or cannot be built here."""
  folder = run_of(folder)
  try:
    run = experiments.build(experiments.open_run(folder) | {"mesh": {}}, folder)
  except UserError:
    return {}
  named = jax.tree_util.tree_leaves_with_path(run.named, is_leaf=lambda leaf: isinstance(leaf, Named))
  return {pytree.name(path): leaf.axes for path, leaf in named}


class SavedFolder:
  """The parameters of a folder in Hugging Face's format, under its own names."""

  def __init__(self, folder: epath.PathLike):
    self._tensors, self.step = Tensors(folder), None
    self.leaves = {
      name: Leaf(name.replace(".", "/"), self._tensors.shape(name), self._tensors.dtype(name).name)
      for name in self._tensors
    }
    self.leaves = {leaf.name: leaf for leaf in self.leaves.values()}

  def read(self, name: str) -> np.ndarray:
    return np.asarray(self._tensors[name.replace("/", ".")])


class SavedArrays:
  """The parameters of bilm-tf's files, few enough to be read at once."""

  def __init__(self, params: pytree.Tree):
    self._arrays, self.step = pytree.named_leaves(params), None
    self.leaves = {name: Leaf(name, array.shape, array.dtype.name) for name, array in self._arrays.items()}

  def read(self, name: str) -> np.ndarray:
    return self._arrays[name]


def look(path: epath.PathLike, step: int | None = None) -> Saved:
  """Returns the parameters at a path: a run folder, Hugging Face's or bilm-tf's, or a checkpoint by itself.

  Raises:
    UserError: none of them is there.
  """
  if huggingface.is_folder(path):
    return SavedFolder(path)
  if bilm.is_folder(path):
    return SavedArrays(bilm.load(path)[1])
  if not (epath.Path(path) / "checkpoints").exists() and not checkpoint.is_bare(path):
    raise UserError(f"{path} holds neither a run nor a model in Hugging Face's format")
  return SavedRun(path, step)


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows of text that show themselves as HTML in a notebook and as a table in a terminal."""

  title: str
  columns: tuple[str, ...]
  rows: tuple[tuple[str, ...], ...]

  def _repr_html_(self) -> str:
    cells = lambda tag, row: "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)  # noqa: E731
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in self.rows)
    title = html.escape(self.title)
    return f"<table><caption>{title}</caption><tr>{cells('th', self.columns)}</tr>{body}</table>"

  def drawn(self) -> Drawn:
    """Returns the table as rich draws it."""
    found = Drawn(title=self.title, title_justify="left", box=None, padding=(0, 2, 0, 0), header_style="bold")
    for i, column in enumerate(self.columns):
      found.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    for row in self.rows:
      found.add_row(*row)
    return found

  def __str__(self) -> str:
    widths = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]
    lines = [self.columns, *self.rows]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def matching(saved: Saved, pattern: str = "") -> list[str]:
  """Returns the names in which a regular expression is found, of all parameters by default.

  Raises:
    UserError: the pattern is no regular expression, or nothing has such a name.
  """
  try:
    found = [name for name in saved.leaves if re.search(pattern, name)]
  except re.error as error:
    raise UserError(f"pattern {pattern!r} is no regular expression: {error}") from error
  if not found:
    raise UserError(f"no parameter's name has {pattern!r} in it")
  return found


def table(saved: Saved, depth: int | None = None, pattern: str = "", values: bool = False) -> Table:
  """Returns a table of parameters: name, shape, dtype, axes, sharding, count, bytes; with `values` norm and zeros too.

  Args:
    depth: parameters whose first so many parts are alike are one row.
    pattern: a regular expression searched in names.

  Raises:
    UserError: as `matching`.
  """
  chosen = [saved.leaves[name] for name in matching(saved, pattern)]
  groups: dict[str, list[Leaf]] = {}
  for leaf in chosen:
    groups.setdefault("/".join(leaf.name.split("/")[:depth]), []).append(leaf)
  columns = ("name", "shape", "dtype", "axes", "sharding", "count", "bytes", *(("norm", "zeros") if values else ()))
  rows = [_row(name, leaves, saved if values else None) for name, leaves in groups.items()]
  total = sum(leaf.count for leaf in chosen)
  return Table(f"{len(chosen)} parameters, {total:,} values, {_bytes(chosen)}", columns, tuple(rows))


def _row(name: str, leaves: list[Leaf], saved: Saved | None) -> tuple[str, ...]:
  alone = leaves[0] if len(leaves) == 1 else None
  shape = "x".join(map(str, alone.shape)) if alone else f"{len(leaves)} parameters"
  dtypes = ", ".join(sorted({leaf.dtype for leaf in leaves}))
  count = sum(leaf.count for leaf in leaves)
  told = (alone.axes, alone.sharding) if alone else ("", "")
  row = (name, shape, dtypes, *told, f"{count:,}", _bytes(leaves))
  if saved is None:
    return row
  squares = zeros = 0.0
  for leaf in leaves:  # one at a time
    array = saved.read(leaf.name).astype(np.float32)
    squares += float(np.sum(np.square(array, dtype=np.float64)))
    zeros += int(np.sum(array == 0))
  return (*row, f"{squares**0.5:.4g}", f"{zeros / max(count, 1):.2%}")


def _bytes(leaves: Iterable[Leaf]) -> str:
  return f"{sum(leaf.bytes for leaf in leaves) / 1e6:,.1f} MB"
