"""The source of some files, by their suffix."""

from collections.abc import Sequence

from lmjax.data.sources.base import Source
from lmjax.data.sources.indexed import Clean, expand_paths
from lmjax.data.sources.records import JsonLines, Parquet
from lmjax.data.sources.text import TextFiles
from lmjax.utils.errors import UserError


def open_files(files: Sequence[str], key: str = "text", document: str = "chunk", clean: Clean | None = None) -> Source:
  """Returns the source of `.jsonl`, `.parquet` or text files, by path or glob, plain or gzipped.

  key: the key or column of the text in JSON lines or parquet. document, clean: of text files, see `TextFiles`.

  Raises:
    UserError: no file matches, the files have several formats, or `document` is unknown.
  """
  suffixes = {path.name.removesuffix(".gz").rpartition(".")[2] for path in expand_paths(files)}
  if suffixes & {"jsonl", "parquet"} and len(suffixes) > 1:
    raise UserError(f"prepare: --files have several formats ({', '.join(sorted(suffixes))}); prepare each separately")
  if suffixes == {"jsonl"}:
    return JsonLines(tuple(files), key)
  if suffixes == {"parquet"}:
    return Parquet(tuple(files), key)
  try:
    return TextFiles(tuple(files), document, clean=clean)
  except ValueError as error:
    raise UserError(f"prepare: {error}") from error
