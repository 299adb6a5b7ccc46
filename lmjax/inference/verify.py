"""Checks all that a saved model allows to check: contents against checksums, headers, finite weights."""

import functools
import time
from collections.abc import Callable

import numpy as np
from etils import epath

from lmjax import checkpoint, storage
from lmjax.storage.base import SavedModel
from lmjax.storage.run import RunFolder
from lmjax.utils import checksums
from lmjax.utils.errors import UserError
from lmjax.utils.files import find


def verify(path: epath.PathLike, say: Callable[[str], None] = print) -> None:
  """Checks a saved model and describes each part in a line: of a run folder, every checkpoint.

  Raises:
    UserError: something is corrupt; every part is checked and described before.
  """
  path = find(path)
  saved = storage.open(path)
  folder = saved.folder if isinstance(saved, RunFolder) else None  # of the run
  parts: dict[str, Callable[[], str]] = {}
  if not folder or (folder / "config.json").exists():
    parts["config and tokenizer"] = lambda: _describe(saved)
  for step, stored in checkpoint.folders(path).items() if folder else ():
    parts[f"step {step}"] = functools.partial(_checkpoint, path, step, stored)
  if not folder:
    parts["weights"] = lambda: f"{_size(saved.files())}, headers can be read, without checksums; {_finite(saved)}"
  corrupt = []
  for name, check in parts.items():
    try:
      say(f"{name}: {check()}")
    except UserError as error:
      corrupt.append(name)
      say(f"{name}: corrupt: {error}")
  if folder and (folder / "corrupt").exists():
    say(f"{folder / 'corrupt'} has checkpoints that were moved aside")
  if corrupt:
    raise UserError(f"{path} is corrupt: {', '.join(corrupt)}")


def _describe(saved: SavedModel) -> str:
  """Reads config and tokenizer."""
  config, tokenizer = saved.config, saved.tokenizer
  return f"can be read, {len(config)} keys, " + (f"{tokenizer.size:,} tokens" if tokenizer else "no tokenizer")


def _checkpoint(path: epath.PathLike, step: int, folder: epath.Path) -> str:
  start = time.perf_counter()
  checked = checkpoint.check(folder)
  seconds = time.perf_counter() - start
  what = f"as they were written ({seconds:.2f} s)" if checked else "without checksums, by an older version"
  return f"{_size(checksums.walk(folder))}, {what}; {_finite(storage.open(path, step))}"


def _size(files: dict[str, epath.Path]) -> str:
  return f"{len(files)} files with {sum(file.stat().length for file in files.values()):,} bytes"


def _finite(saved: SavedModel) -> str:
  """Reads the parameters, one at a time."""
  counts = {name: int(np.sum(~np.isfinite(np.asarray(saved.read(name), np.float32)))) for name in saved.leaves}
  wrong = {name: count for name, count in counts.items() if count}
  if not wrong:
    return f"{len(counts)} parameters, all finite"
  name, count = next(iter(wrong.items()))
  return f"{len(wrong)} of {len(counts)} parameters have NaN or infinite weights, first {name} ({count:,})"
