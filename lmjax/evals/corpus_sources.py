"""What a corpus consists of besides plain text and JSON lines: whatever training reads, a document at a time."""

import dataclasses
import functools
import gzip
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from lmjax.data.sources.base import BadRecord, Encoded, Source, check_skipped_fraction, read_document
from lmjax.data.sources.paths import expand_paths
from lmjax.data.sources.records import Parquet
from lmjax.data.sources.text import TextFiles
from lmjax.data.tokenizers import registry
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.utils import files

JSON, TEXT = (".jsonl", ".json", ".ndjson"), (".txt", ".text", ".md")
LONGEST = 2**24  # bytes of a line that is read to find out whether it is JSON
CHUNK = 2**23  # bytes of a document of a file that is read as text, cut at the end of a line
SAMPLE = 16  # documents from which the size of all is estimated


def open_corpus(corpus: Sequence[str | Source]) -> list[epath.Path | Source]:
  """Returns the files that paths and globs match; those that cannot be read in parts of bytes as sources.

  Raises:
    UserError: a path or glob matches nothing.
  """
  opened: list[epath.Path | Source] = []
  for entry in corpus:
    if not isinstance(entry, str):
      opened.append(dataclasses.replace(entry) if dataclasses.is_dataclass(entry) else entry)
      continue
    for path in expand_paths(entry):
      with files.reading(path), path.open("rb") as file:
        start = file.read(4)
      if start == b"PAR1":
        opened.append(Parquet((str(path),)))
      elif start[:2] in (b"\xff\xfe", b"\xfe\xff"):  # UTF-16
        opened.append(TextFiles((str(path),), chunk_bytes=CHUNK))
      else:
        opened.append(path)
  return opened


def is_json(path: epath.Path) -> bool:
  """Returns whether a file has a JSON object in each line: by its name, or else by its first line."""
  suffix = epath.Path(path.name.lower().removesuffix(".gz")).suffix
  if suffix in JSON + TEXT:
    return suffix in JSON
  with path.open("rb") as raw, gzip.open(raw) if path.suffix == ".gz" else raw as stream:
    line = stream.readline(LONGEST)
  try:
    return line.lstrip().startswith(b"{") and bool(files.parse_json(line))
  except ValueError:
    return False


def text_of(document: Any) -> str:
  """Returns the text of a document of any source: all its strings, in their order."""
  return document if isinstance(document, str) else " ".join(strings(document))


def strings(value: Any) -> Iterator[str]:
  """Yields the strings in a value, in their order."""
  if isinstance(value, str):
    yield value
  elif isinstance(value, Mapping | list | tuple):
    for part in value.values() if isinstance(value, Mapping) else value:
      yield from strings(part)
  elif dataclasses.is_dataclass(value) and not isinstance(value, type):
    for field in dataclasses.fields(value):
      yield from strings(getattr(value, field.name))


def document_at(source: Source, index: int) -> str | BadRecord:
  """Returns the text of a document; what was prepared is decoded."""
  return read_document(
    source, index, lambda value: _decode(source, value) if isinstance(value, Encoded) else _checked(value)
  )


def _checked(value: Any) -> str | BadRecord:
  return value if isinstance(value, BadRecord) else text_of(value)


def _decode(source: Any, document: Encoded) -> str:
  return _tokenizer(source.folder).decode(document.ids.tolist())


@functools.lru_cache(4)
def _tokenizer(folder: str) -> Tokenizer:
  return registry.load(files.expand(folder) / "tokenizer")


def documents(source: Source, start: int, end: int) -> Iterator[bytes]:
  """Yields the text of the documents of a range that can be read.

  Raises:
    UserError: more than 1 % of them cannot.
  """
  skipped = []
  for index in range(start, end):
    document = document_at(source, index)
    if isinstance(document, BadRecord):
      skipped.append(document)
      check_skipped_fraction(index - start + 1, skipped)
    else:
      yield document.encode("utf-8", "replace")


def mean_size(source: Source) -> int:
  """Returns the bytes of a document, estimated from a few."""
  chosen = {i * len(source) // SAMPLE for i in range(SAMPLE)} if len(source) else set()
  sizes = [len(text.encode("utf-8", "replace")) for i in chosen if isinstance(text := document_at(source, i), str)]
  return max(sum(sizes) // max(len(sizes), 1), 1)


def identity(source: Source) -> str:
  """Returns what a source and its first and last documents are, for a search that continues."""
  ends = [str(document_at(source, i)) for i in {0, max(len(source) - 1, 0)} if len(source)]
  text = json.dumps([re.sub(r" at 0x[0-9a-f]+", "", repr(source)), len(source), ends])
  return hashlib.sha256(text.encode()).hexdigest()[:16]
