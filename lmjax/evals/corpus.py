"""What occurs in a corpus: files larger than memory are read in parts, by several processes, and can be continued."""

import collections
import contextlib
import dataclasses
import gzip
import json
import multiprocessing
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol

from etils import epath

from lmjax.data.sources.base import Source
from lmjax.evals import corpus_sources
from lmjax.utils import files
from lmjax.utils.errors import UserError, reason

PART = 64 * 2**20  # bytes of a part, after which an interrupted search continues
BLOCK = 2**20  # bytes in memory at a time
SPACE = b" \t\n\r\x0b\x0c"
SEPARATOR = b" \0 "  # between the documents of a JSON file


@dataclasses.dataclass(frozen=True)
class Part:
  """The bytes of a file from `start` to `end`; a gzipped file is one part, whose end is None.

  source: what is read instead of a file, then `file` identifies it, and `start` and `end` count its documents.
  """

  file: str
  start: int = 0
  end: int | None = None
  source: Source | None = None

  def key(self) -> list[Any]:
    """Returns what says that a part is the same as before."""
    return [self.file, self.start, self.end, epath.Path(self.file).stat().length if self.source is None else None]


@dataclasses.dataclass(frozen=True)
class Block:
  """Some bytes of a part: the first `own` of them belong to it, the rest is read again as the next block.

  fresh: whether no word is continued from the block before. last: whether the file ends with it.
  """

  data: bytes
  own: int
  fresh: bool = True
  last: bool = False


class Matcher(Protocol):
  """Counts in a part what it searches; it is pickled for other processes. beyond: bytes of a match, at most."""

  beyond: int

  def count(self, blocks: Iterator[Block]) -> dict[int, int]:
    """Returns how often each thing that is searched begins in the blocks, by its number; those that do."""


def split(corpus: Sequence[str | Source], size: int = PART) -> list[Part]:
  """Returns the parts of the files that paths and globs match, and of sources of documents.

  Raises:
    UserError: a path or glob matches nothing.
  """
  parts = []
  for opened in corpus_sources.open_corpus(corpus):
    if isinstance(opened, epath.Path):
      length = opened.stat().length
      ends = range(0, length, size)
      parts += [Part(str(opened))] if opened.suffix == ".gz" else [
        Part(str(opened), at, min(at + size, length)) for at in ends
      ]  # fmt: skip
    else:
      name, count = corpus_sources.identity(opened), len(opened)
      each = max(size // corpus_sources.mean_size(opened), 1)
      parts += [Part(name, at, min(at + each, count), opened) for at in range(0, count, each)]
  return parts


def blocks(part: Part, beyond: int, size: int = BLOCK) -> Iterator[Block]:
  """Yields the blocks of a part; the text of a JSON Lines file is the `text` of each of its lines.

  Raises:
    UserError: the file cannot be read, or a line has no text.
  """
  if part.source is not None:
    yield from _joined(corpus_sources.documents(part.source, part.start, part.end or 0), size)
    return
  path = epath.Path(part.file)
  try:
    zipped = path.suffix == ".gz"
    with path.open("rb") as raw, gzip.open(raw) if zipped else contextlib.nullcontext(raw) as stream:
      if corpus_sources.is_json(path):
        yield from _joined(_json_lines(stream, part), size)
        return
      yield from _text_blocks(stream, part, beyond, size)
  except (OSError, EOFError, zlib.error) as error:
    raise UserError(f"{path} cannot be read: {reason(error)}") from error


def _text_blocks(stream: Any, part: Part, beyond: int, size: int) -> Iterator[Block]:
  fresh, at = True, part.start
  if part.start:
    stream.seek(part.start - 1)
    fresh = stream.read(1) in SPACE
  waiting = b""
  while part.end is None or at < part.end:
    waiting += stream.read(size + beyond - len(waiting))
    if not waiting:
      return
    own = min(size, len(waiting), len(waiting) if part.end is None else part.end - at)
    yield Block(waiting, own, fresh, len(waiting) < size + beyond)
    fresh, at, waiting = waiting[own - 1] in SPACE, at + own, waiting[own:]


def _json_lines(stream: Any, part: Part) -> Iterator[bytes]:
  at = part.start
  if part.start:  # the line that is cut belongs to the part before
    stream.seek(part.start - 1)
    at += len(stream.readline()) - 1
  while part.end is None or at < part.end:
    line = stream.readline()
    if not line:
      return
    at += len(line)
    if line.strip():
      try:
        yield str(files.parse_json(line)["text"]).encode("utf-8", "replace")
      except (ValueError, KeyError) as error:
        raise UserError(f"{part.file}: a line before byte {at:,} is not a JSON object with a `text`") from error


def _joined(documents: Iterable[bytes], size: int) -> Iterator[Block]:
  """Yields blocks of whole documents."""
  texts: list[bytes] = []
  total = 0
  for document in documents:
    texts.append(document)
    total += len(document)
    if total >= size:
      data = SEPARATOR.join([*texts, b""])
      yield Block(data, len(data), last=True)
      texts, total = [], 0
  if data := SEPARATOR.join([*texts, b""]):
    yield Block(data, len(data), last=True)


_work: Any = None  # of a worker process: what it searches, and the parts of the corpus


def _prepare(matcher: Matcher, parts: Sequence[Part]) -> None:
  global _work
  _work = matcher, parts


def _count(number: int) -> dict[int, int]:
  matcher, parts = _work
  return matcher.count(blocks(parts[number], matcher.beyond))


def search(
  parts: Sequence[Part], matcher: Matcher, key: Any, state: epath.Path, workers: int = 1,
  done: Callable[[int, int], None] = lambda parts, of: None,
) -> dict[int, int]:  # fmt: skip
  """Returns how often each thing that a matcher searches occurs in a corpus.

  Args:
    key: what the counts depend on; counts of another key in the state are dropped.
    state: a file with the counts of the parts that are complete, from which an interrupted search continues.
    workers: processes.
    done: called with the number of complete parts, and of all.

  Raises:
    UserError: a file cannot be read or written, or a process died.
  """
  first = json.dumps([key, [part.key() for part in parts]])
  lines = files.read_text(state).split("\n") if state.exists() else []
  counts: collections.Counter[int] = collections.Counter()
  complete, kept = set(), [first]
  for line in lines[1:] if lines[:1] == [first] else ():
    try:
      record = files.parse_json(line)
      part, own = int(record["part"]), {int(number): int(count) for number, count in record["counts"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
      continue  # what an interruption cut
    counts.update(own)
    complete.add(part)
    kept.append(line)
  if lines != [*kept, ""]:
    files.write(state, "\n".join(kept) + "\n")
  missing = [i for i in range(len(parts)) if i not in complete]
  done(len(complete), len(parts))

  def add(number: int, new: dict[int, int]) -> None:
    counts.update(new)
    complete.add(number)
    files.append(state, json.dumps({"part": number, "counts": new}) + "\n")
    done(len(complete), len(parts))

  if workers <= 1 or len(missing) <= 1:
    for number in missing:
      add(number, matcher.count(blocks(parts[number], matcher.beyond)))
    return dict(counts)
  context = multiprocessing.get_context("spawn")
  try:
    with ProcessPoolExecutor(min(workers, len(missing)), context, _prepare, (matcher, parts)) as pool:
      for number, new in zip(missing, pool.map(_count, missing), strict=True):
        add(number, new)
  except BrokenProcessPool as error:
    raise UserError("evaluate: a process that reads the corpus died, perhaps out of memory; try fewer --workers") from (
      error
    )
  return dict(counts)
