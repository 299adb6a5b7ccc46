"""Parameters as a table."""

import dataclasses
import html
import re
from collections.abc import Iterable

import numpy as np
from rich.table import Table as RichTable

from lmjax.storage.saved import Leaf, Saved
from lmjax.utils.errors import UserError


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

  def drawn(self) -> RichTable:
    """Returns the table as rich draws it."""
    found = RichTable(title=self.title, title_justify="left", box=None, padding=(0, 2, 0, 0), header_style="bold")
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
