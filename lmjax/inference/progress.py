"""Progress of long work and the time left: a bar in a terminal, a line now and then in a log or a notebook."""

import datetime
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")
FIRST, EVERY = 10, 60  # seconds until the first line, and between lines


class ProgressBar:
  """Counts what is done of a total, on stderr, since results may be on stdout; on the first host only.

  A context manager. unit: what is counted, in the plural. done: what was there before, which took no time.
  """

  def __init__(self, name: str, total: int, done: int = 0, unit: str = ""):
    self._name, self._unit = name, f" {unit}" if unit else ""
    self._first = self._done = done
    self._total, self._note = total, ""
    self._bar: Progress | None = None
    self._silent = jax.process_index() != 0
    self._console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)

  def __enter__(self) -> "ProgressBar":
    self._start = time.monotonic()
    self._next = self._start + FIRST
    if not self._silent and self._console.is_terminal and not self._console.is_jupyter:  # a bar needs widgets there
      columns = TextColumn(self._name), BarColumn(), TextColumn("{task.completed:,.0f}/{task.total:,.0f}" + self._unit)
      notes = TextColumn("{task.fields[note]}"), TimeRemainingColumn()
      self._bar = Progress(*columns, *notes, console=self._console, transient=True)
      self._task = self._bar.add_task(self._name, total=self._total, completed=self._done, note="")
      self._bar.start()
    return self

  def advance(self, number: int = 1) -> None:
    """Counts some more as done."""
    self.update(self._done + number)

  def update(self, done: float, total: int | None = None, note: str = "") -> None:
    """Sets what is done, and the total where it has changed; a note, such as a speed, is added."""
    self._done, self._total, self._note = done, self._total if total is None else total, note
    if self._bar:
      self._bar.update(self._task, completed=done, total=self._total, note=note)
    elif not self._silent and time.monotonic() >= self._next:
      self._next = time.monotonic() + EVERY
      self._console.print(self._line())

  def _line(self) -> str:
    line = f"{self._name}: {self._done:,.0f} of {self._total:,.0f}{self._unit}" + f", {self._note}" * bool(self._note)
    new = self._done - self._first
    if new <= 0:
      return line
    left = (time.monotonic() - self._start) / new * max(self._total - self._done, 0)
    return f"{line}, {datetime.timedelta(seconds=round(left))} left"

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
  ) -> None:
    if self._bar:
      self._bar.stop()


def tracked(items: Iterable[T], name: str, total: int, unit: str = "") -> Iterator[T]:
  """Yields items while a bar counts how many have been used."""
  with ProgressBar(name, total, unit=unit) as progress:
    for item in items:
      yield item
      progress.advance()
