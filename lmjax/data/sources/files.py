"""The source of some files, by what they contain."""

from collections.abc import Sequence

from lmjax.data.sources.base import Source
from lmjax.data.sources.indexed import Clean, expand_paths
from lmjax.data.sources.kinds import kind_of
from lmjax.data.sources.records import JsonLines, Parquet
from lmjax.data.sources.text import TextFiles
from lmjax.utils.errors import UserError


def open_files(
  files: Sequence[str], key: str | None = None, document: str | None = None, clean: Clean | None = None
) -> Source:
  """Returns the source of text files, JSON lines or parquet files, by path, glob or folder, plain or gzipped.

  key: the key or column of the text in JSON lines or parquet. document, clean: of text files, see `TextFiles`.

  Raises:
    UserError: no file matches, the files have several formats, `document` is unknown, or an argument has no effect.
  """
  kinds = {kind_of(path): path for path in expand_paths(files)}
  if len(kinds) > 1:
    several = ", ".join(f"{path.name} is {kind}" for kind, path in kinds.items())
    raise UserError(f"prepare: --files have several formats ({several}); prepare each separately")
  (kind,) = kinds
  given = {"document": document, "clean": clean} if kind != "text" else {"key": key}
  for name, value in given.items():
    if value is not None:
      raise UserError(f"prepare: --{name} has no effect on files of {kind}, such as {kinds[kind]}")
  if kind == "json":
    return JsonLines(tuple(files), key or "text")
  if kind == "parquet":
    return Parquet(tuple(files), key or "text")
  try:
    return TextFiles(tuple(files), document or "chunk", clean=clean)
  except ValueError as error:
    raise UserError(f"prepare: {error}") from error
