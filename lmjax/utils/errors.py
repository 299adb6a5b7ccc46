"""The exception for errors that the user can fix."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
  """What is wrong, where, and what to do, in one line; commands print it and exit with code 2."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
  """Returns `; did you mean 'x'?` for the closest known name, otherwise all known names if there are at most 40."""
  known = sorted(known)
  close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
  if close:
    return f"; did you mean {close[0]!r}?"
  return f"; known: {', '.join(known)}" if 0 < len(known) <= 40 else ""
