"""What files contain: text, lines of JSON or parquet, by their suffix, or by how they start where that says nothing."""

from collections.abc import Iterable

from etils import epath

from lmjax.data.sources.paths import read_bytes
from lmjax.utils.errors import UserError
from lmjax.utils.files import parse_json

SUFFIXES = {".txt": "text", ".text": "text", ".md": "text", ".jsonl": "json", ".ndjson": "json", ".parquet": "parquet"}
LONGEST = 2**24  # bytes of a line, or of a file, that is read to find out whether it is JSON


def kind_of(path: epath.Path) -> str:
  """Returns what a file contains: `text`, `json` (an object in each line) or `parquet`.

  Raises:
    UserError: it is JSON that is not an object in each line.
  """
  suffix = epath.Path(path.name.lower().removesuffix(".gz")).suffix
  if suffix in SUFFIXES:
    return SUFFIXES[suffix]
  start = bytes(read_bytes(path)[: LONGEST + 1]).removeprefix(b"\xef\xbb\xbf").lstrip()
  if start.startswith(b"PAR1"):
    return "parquet"
  if not start.startswith((b"{", b"[")):
    return "text"
  if _is_json(start.split(b"\n", 1)[0], dict):
    return "json"
  if suffix == ".json" or (len(start) <= LONGEST and (_is_json(start, dict) or _is_json(start, list))):
    raise UserError(f"data: {path} is JSON, and not an object in each line; make it one, such as by jq -c '.[]'")
  return "text"


def _is_json(text: bytes, kind: type) -> bool:
  try:
    return len(text) <= LONGEST and bool(parse_json(text, kind))
  except ValueError:
    return False


def check_text(paths: Iterable[epath.Path]) -> None:
  """Raises UserError for files that are not text: to read their syntax as text is hardly ever meant."""
  for path in paths:
    kind = kind_of(path)
    if kind != "text":
      name = "JsonLines" if kind == "json" else "Parquet"
      raise UserError(
        f"data: {path} is {kind}, not text; use the source lmjax.data.sources.records:{name}, "
        "or lmjax prepare --files, which recognises it"
      )
