"""The exception for errors that the user can fix, and messages of one line."""

import difflib
from collections.abc import Iterable

LONGEST = 2000  # characters of a message


class UserError(Exception):
  """What is wrong, where, and what to do, in one line; commands print it and exit with code 2."""

  def __init__(self, message: str):
    super().__init__(one_line(message, LONGEST))


class DivergedError(UserError):
  """The loss or the gradient of a run is not finite any more."""


def one_line(text: str, longest: int = 300) -> str:
  """Returns text as one printable line: control characters and invalid characters are escaped, a long end is cut."""
  line = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
  return line if len(line) <= longest else line[: longest - 1] + "…"


def reason(error: BaseException) -> str:
  """Returns the innermost cause of an error in one line."""
  while error.__cause__ is not None:
    error = error.__cause__
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  return one_line(lines[0] if lines else type(error).__name__)


def did_you_mean(name: str, known: Iterable[str]) -> str:
  """Returns `; did you mean 'x'?` for the closest known name, otherwise all known names if there are at most 40."""
  known = sorted(known)
  close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
  if close:
    return f"; did you mean {close[0]!r}?"
  return f"; known: {', '.join(known)}" if 0 < len(known) <= 40 else ""
