"""Tables of parameters, for terminals and notebooks."""

import dataclasses
import html
import re
from collections.abc import Iterable

import numpy as np
from rich.table import Table
from rich.text import Text

from lmjax.storage.base import Leaf, SavedModel
from lmjax.utils.errors import UserError, one_line


@dataclasses.dataclass(frozen=True)
class DisplayTable:
  """Rows of strings, displayed as HTML in a notebook and as a table in a terminal."""

  title: str
  columns: tuple[str, ...]
  rows: tuple[tuple[str, ...], ...]

  def _repr_html_(self) -> str:
    cells = lambda tag, row: "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)  # noqa: E731
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in self.rows)
    title = html.escape(self.title)
    return f"<table><caption>{title}</caption><tr>{cells('th', self.columns)}</tr>{body}</table>"

  def rich(self) -> Table:
    """Returns the table for a terminal."""
    table = Table(
      title=Text(one_line(self.title)), title_justify="left", box=None, padding=(0, 2, 0, 0), header_style="bold"
    )
    for i, column in enumerate(self.columns):
      table.add_column(Text(one_line(column)), justify="left" if i == 0 else "right", overflow="fold")
    for row in self.rows:
      table.add_row(*(Text(one_line(cell)) for cell in row))
    return table

  def __str__(self) -> str:
    lines = [tuple(map(one_line, row)) for row in (self.columns, *self.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def matching(saved: SavedModel, pattern: str = "") -> list[str]:
  """Returns the names of the parameters that match a regular expression; by default all.

  Raises:
    UserError: the pattern is not a regular expression, or matches no parameter.
  """
  try:
    names = [name for name in saved.leaves if re.search(pattern, name)]
  except re.error as error:
    raise UserError(f"pattern {pattern!r} is not a regular expression: {error}") from error
  if not names:
    raise UserError(f"pattern {pattern!r} matches no parameter of {saved.path}")
  return names


def table(saved: SavedModel, depth: int | None = None, pattern: str = "", values: bool = False) -> DisplayTable:
  """Returns a table of parameters: name, shape, dtype, axes, sharding, count, bytes.

  Args:
    depth: number of parts of a name by which to group parameters; None lists each of them.
    pattern: a regular expression that names must match.
    values: read the parameters, and add columns with their norms and fractions of zeros.

  Raises:
    UserError: as in `matching`.
  """
  chosen = [saved.leaves[name] for name in matching(saved, pattern)]
  groups: dict[str, list[Leaf]] = {}
  for leaf in chosen:
    groups.setdefault("/".join(leaf.name.split("/")[:depth]), []).append(leaf)
  columns = ("name", "shape", "dtype", "axes", "sharding", "count", "bytes", *(("norm", "zeros") if values else ()))
  rows = [_row(name, leaves, saved if values else None) for name, leaves in groups.items()]
  total = sum(leaf.count for leaf in chosen)
  return DisplayTable(f"{len(chosen)} parameters, {total:,} values, {_bytes(chosen)}", columns, tuple(rows))


def _row(name: str, leaves: list[Leaf], saved: SavedModel | None) -> tuple[str, ...]:
  alone = leaves[0] if len(leaves) == 1 else None
  shape = "x".join(map(str, alone.shape)) if alone else f"{len(leaves)} parameters"
  dtypes = ", ".join(sorted({leaf.dtype for leaf in leaves}))
  count = sum(leaf.count for leaf in leaves)
  cells = (alone.axes, alone.sharding) if alone else ("", "")
  row = (name, shape, dtypes, *cells, f"{count:,}", _bytes(leaves))
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
