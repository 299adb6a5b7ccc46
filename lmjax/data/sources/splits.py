"""Splits of a source, in percent."""

import re

from lmjax.utils.errors import UserError


def split_range(count: int, split: str) -> range:
  """Returns the indices of a split of `count` items, given as a slice in percent: `:90%`, `90%:`, empty for all.

  Raises:
    UserError: the split has another form, or is empty.
  """
  match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)%)?:(?:(\d+(?:\.\d+)?)%)?", split or ":")
  if not match:
    raise UserError(f"data: split {split!r} is not of the form ':90%', '90%:' or '80%:90%'")
  start, end = (float(p) if p else default for p, default in zip(match.groups(), (0.0, 100.0), strict=True))
  indices = range(int(count * start / 100), int(count * end / 100))
  if not indices:
    raise UserError(f"data: split {split!r} of {count} documents is empty: use more text or a larger split")
  return indices


def parse_split(split: str) -> tuple[str, str]:
  """Returns the name and the slice of a split in TFDS's syntax: ("train", ":90%") for `train[:90%]`.

  Raises:
    UserError: the split has another form.
  """
  match = re.fullmatch(r"([^\[\]]+)(?:\[([^\[\]]*)\])?", split)
  if not match:
    raise UserError(f"data: split {split!r} is not of the form 'train' or 'train[:90%]'")
  return match[1], match[2] or ""
