"""Where commands write their results: one host prints, and files appear when they are complete."""

import contextlib
import io
import json
import os
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from rich.console import Console, RenderableType

from lmjax.logs import console
from lmjax.utils.files import replacing


def main_process_output() -> contextlib.AbstractContextManager:
  """Returns a context in which the first host prints and the others, which compute the same, do not."""
  return contextlib.redirect_stdout(io.StringIO()) if jax.process_index() else contextlib.nullcontext()


def show(table: RenderableType) -> None:
  """Prints a table as wide as the terminal; 160 columns where the output is not a terminal."""
  Console(highlight=False, width=None if console.is_terminal else 160).print(table, markup=False)


def write_jsonl(path: epath.PathLike, records: Iterable[dict[str, Any]]) -> None:
  """Writes a JSON object per line as the records come, on the first host; the others only compute them.

  Raises:
    UserError: the file cannot be written.
  """
  with replacing(os.devnull if jax.process_index() else path) as file:
    for record in records:
      file.write((json.dumps(record, ensure_ascii=False) + "\n").encode())


def write_npz(path: epath.PathLike, arrays: Iterable[np.ndarray]) -> None:
  """Writes float32 arrays under the names 0, 1, ... of an .npz file, as they come.

  Raises:
    UserError: the file cannot be written.
  """
  with _open_npz(path) as archive:
    for number, array in enumerate(arrays):
      with archive.open(f"{number}.npy", "w", force_zip64=True) as entry:
        np.lib.format.write_array(entry, np.ascontiguousarray(array, np.float32))


def write_npz_rows(path: epath.PathLike, name: str, blocks: Iterable[np.ndarray], rows: int) -> None:
  """Writes one float32 array [rows, D] into an .npz file from blocks of rows, as they come.

  Raises:
    UserError: the file cannot be written.
  """
  with _open_npz(path) as archive, archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
    for number, block in enumerate(blocks):
      if not number:
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows, block.shape[1])}
        np.lib.format.write_array_header_2_0(entry, header)
      entry.write(np.ascontiguousarray(block, np.float32).tobytes())


@contextlib.contextmanager
def _open_npz(path: epath.PathLike) -> Iterator[zipfile.ZipFile]:
  with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
    yield archive
