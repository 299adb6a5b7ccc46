"""Preparation: several processes read, filter and tokenize documents, and one writes them in order.

Documents are processed in chunks, whose results are written in order, so the output does not depend on the number of
processes. A shard ends where a chunk ends. The state is saved after each shard, and a preparation that was killed
resumes from there.
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from lmjax.data.sources.base import BadRecord, Source, check_skipped_fraction, read_document
from lmjax.data.sources.shards import SIZE, UNFINISHED, VERSION, check_counts, check_shard, digest, read_index
from lmjax.data.tokenizers import base
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.utils.errors import UserError, reason
from lmjax.utils.fields import Fields
from lmjax.utils.files import append, expand, make_folder, new_folder, parse_json, read_bytes, write

CHUNK = 256  # maximum documents of a chunk
COUNTS = ("read", "skipped", "filtered", "duplicates", "documents", "tokens", "bytes")


@dataclasses.dataclass(frozen=True)
class Preparation:
  """A source, its tokenizer and the options of preparing it.

  validation: fraction of the documents in the validation split, chosen by the hash of their text. deduplicate: keep
  only the first of documents whose text is equal, apart from white space at both ends. keep: a function of the text;
  keep only documents for which it is true. shard: bytes after which a shard ends.
  """

  source: Source
  tokenizer: Tokenizer
  validation: float = 0.0
  deduplicate: bool = False
  keep: Callable[[str], bool] | None = None
  shard: int = 64 * 2**20

  def __post_init__(self):
    if self.shard < 1:
      raise UserError(f"prepare: the size of a shard must be at least 1 byte, not {self.shard}")
    if not 0 <= self.validation < 1:
      raise UserError(f"prepare: validation must be at least 0 and below 1, not {self.validation}")

  @property
  def dtype(self) -> str:
    return "<u2" if self.tokenizer.size <= 2**16 else "<u4"

  @property
  def chunk(self) -> int:
    """The number of documents in a chunk; smaller for a small corpus, so that all processes have work."""
    return min(CHUNK, max(len(self.source) // 64, 1))

  def metadata(self) -> dict[str, Any]:
    """Returns what must be the same to resume an earlier preparation."""
    keep = f"{self.keep.__module__}:{self.keep.__qualname__}" if self.keep else ""
    return {
      "version": VERSION,
      "source": re.sub(r" at 0x[0-9a-f]+", "", repr(self.source))[:2000],  # addresses of functions change
      "records": len(self.source),
      "tokenizer": base.fingerprint(self.tokenizer),
      "dtype": self.dtype,
      "validation": self.validation,
      "deduplicate": self.deduplicate,
      "keep": keep,
      "shard": self.shard,
    }

  def encode(self, first: int) -> tuple[list[tuple[bytes, bytes]], dict[str, int], list[BadRecord]]:
    """Encodes the chunk of documents that starts at index `first`.

    Returns:
      (hash of the text, record of its shard) for each document, counts, and the skipped records.
    """
    numbers = range(first, min(first + self.chunk, len(self.source)))
    documents = {i: read_document(self.source, i, self._check) for i in numbers}
    texts = {i: text for i, text in documents.items() if isinstance(text, str) and text}
    try:
      encoded = dict(zip(texts, self.tokenizer.encode_many(list(texts.values())), strict=True))
    except Exception:  # because of one of them
      encoded = {i: read_document(self.source, i, self.tokenizer.encode) for i in texts}
    skipped = [document for document in (documents | encoded).values() if isinstance(document, BadRecord)]
    records = []
    for i, ids in encoded.items():
      if isinstance(ids, BadRecord):
        continue
      raw = texts[i].encode("utf-8")
      key = hashlib.blake2b(raw.strip(), digest_size=16).digest()
      records.append((key, SIZE.pack(len(raw)) + np.asarray(ids, self.dtype).tobytes()))
    filtered = sum(document is None for document in documents.values())
    return records, {"read": len(documents), "skipped": len(skipped), "filtered": filtered}, skipped

  def _check(self, document: Any) -> str | BadRecord | None:
    """Returns the text of a document, empty if it is white space, None if it is not kept."""
    if isinstance(document, BadRecord):
      return document
    if not isinstance(document, str):
      raise ValueError(f"it is of type {type(document).__name__}, not a string")
    document.encode()  # fails for half a surrogate pair
    kept = document.strip() and (self.keep is None or self.keep(document))
    return document if kept else None if document.strip() else ""

  def run(self, folder: epath.PathLike, workers: int = 0) -> Iterator[tuple[int, dict[str, int]]]:
    """Writes the folder, and yields (documents read, counts so far) after each chunk; nothing if it was complete.

    Raises:
      UserError: the folder contains other data, too many records are malformed, a worker died, or a write failed.
    """
    if workers < 0:
      raise UserError(f"prepare: workers must be at least 0, not {workers}")
    folder = expand(folder)
    if (folder / "index.json").exists():
      if read_index(folder)["made"] != self.metadata():
        raise UserError(f"prepare: {folder} contains other prepared data; choose another --output")
      return
    make_folder(folder)
    skipped: list[BadRecord] = []
    try:
      writer = _Writer(self, folder)
      firsts = range(writer.next, len(self.source), self.chunk)
      for first, (records, counts, more) in zip(firsts, _encoded_chunks(self, firsts, workers), strict=True):
        skipped += more
        check_skipped_fraction(writer.counts["read"] + counts["read"] - writer.read_before, skipped)
        writer.write(records, counts)
        after = min(first + self.chunk, len(self.source))
        if writer.written >= self.shard:
          writer.finish_shards(after)
        yield after, writer.counts
      writer.finish(skipped)
    except (OSError, RuntimeError) as error:  # Riegeli raises RuntimeError for a full disk
      if isinstance(error, BrokenProcessPool):
        raise UserError("prepare: a worker process died, perhaps out of memory; try fewer --workers") from error
      raise UserError(
        f"prepare: {folder} cannot be written: {reason(error)}; rerun the same command to resume after "
        "the last complete shard"
      ) from error


class _Writer:
  """Writes a folder; shards, counts and hashes are restored if an earlier preparation was interrupted."""

  def __init__(self, preparation: Preparation, folder: epath.Path):
    self.preparation, self.folder = preparation, folder
    self.next, self.counts = 0, dict.fromkeys(COUNTS, 0)
    self.read_before = 0  # records read before the interruption
    self.splits: dict[str, list[dict]] = {"train": []} | ({"validation": []} if preparation.validation else {})
    self._keys: list[bytes] = []  # of the open shards
    self._seen: set[bytes] = set()
    self._resume()
    self._open()

  def _resume(self) -> None:
    metadata, state = self.preparation.metadata(), self.folder / UNFINISHED
    lines = _complete_lines(state) if state.exists() else []
    if lines and lines[0] != metadata:
      raise UserError(f"prepare: {self.folder} contains part of other data; delete it or choose another --output")
    if not lines:
      with new_folder(self.folder / "tokenizer") as tokenizer:
        self.preparation.tokenizer.save(tokenizer)
    write(state, "".join(json.dumps(line) + "\n" for line in lines or [metadata]))  # drops a truncated line
    for number, line in enumerate(lines[1:], 2):
      saved = Fields(line, f"{state}:{number}")
      self.next = saved.integer("next", most=len(self.preparation.source))
      self.counts |= check_counts(saved.section("counts"), COUNTS)
      self.read_before = self.counts["read"]
      for split in self.splits:
        self.splits[split].append(check_shard(self.folder, saved.section("shards").section(split)))
    for path in sorted(self.folder.glob("*.keys")):
      if int(path.stem) < len(self.splits["train"]):
        raw = path.read_bytes()
        self._seen |= {raw[i : i + 16] for i in range(0, len(raw), 16)}

  def _path(self, split: str) -> epath.Path:
    return self.folder / f"{split}-{len(self.splits[split]):05}.array_record"

  def _open(self) -> None:
    self.written = 0
    self._open_counts = {split: dict.fromkeys(("documents", "tokens", "bytes"), 0) for split in self.splits}
    # One record per group allows random access; ids do not compress much.
    options = "group_size:1,uncompressed"
    self._writers = {split: ArrayRecordWriter(f"{self._path(split)}.partial", options) for split in self.splits}

  def write(self, records: list[tuple[bytes, bytes]], counts: dict[str, int]) -> None:
    """Writes the documents of a chunk to the open shards."""
    for name, value in counts.items():
      self.counts[name] += value
    width = np.dtype(self.preparation.dtype).itemsize
    for key, record in records:
      if self.preparation.deduplicate:
        if key in self._seen:
          self.counts["duplicates"] += 1
          continue
        self._seen.add(key)
        self._keys.append(key)
      u = int.from_bytes(key[:8], "little") / 2**64
      split = "validation" if u < self.preparation.validation else "train"
      self._writers[split].write(record)
      self.written += len(record)
      sizes = {"documents": 1, "tokens": (len(record) - SIZE.size) // width, "bytes": SIZE.unpack_from(record)[0]}
      for name, value in sizes.items():
        self._open_counts[split][name] += value
        self.counts[name] += value

  def finish_shards(self, after: int) -> None:
    """Closes the open shards, saves that all documents before `after` are written, and opens the next shards."""
    shards = {}
    if self.preparation.deduplicate:
      write(self.folder / f"{len(self.splits['train']):05}.keys", b"".join(self._keys))
      self._keys = []
    for split, writer in self._writers.items():
      writer.close()
      path = self._path(split)
      partial = epath.Path(f"{path}.partial")
      size, sha256 = partial.stat().length, digest(partial)
      partial.rename(path)
      shards[split] = {"file": path.name, "size": size, "sha256": sha256, **self._open_counts[split]}
    line = {"next": after, "counts": self.counts, "shards": shards}
    append(self.folder / UNFINISHED, json.dumps(line) + "\n")
    for split, shard in shards.items():
      self.splits[split].append(shard)
    self._open()

  def finish(self, skipped: list[BadRecord]) -> None:
    """Closes the last shards, writes the index and removes temporary files."""
    if not self.counts["documents"]:
      first = f"the first: {skipped[0].where}: {skipped[0].why}" if skipped else "see --keep and --document"
      raise UserError(f"prepare: none of the {self.counts['read']} records read can be used; {first}")
    self.finish_shards(len(self.preparation.source))
    for writer in self._writers.values():
      writer.close()
    index: dict[str, Any] = {
      "version": VERSION,
      "made": self.preparation.metadata(),
      "tokenizer": base.fingerprint(self.preparation.tokenizer),
      "dtype": self.preparation.dtype,
      "counts": self.counts,
      "splits": {split: [s for s in shards if s["documents"]] for split, shards in self.splits.items()},
      "skipped": [f"{record.where}: {record.why}" for record in skipped[:100]],
    }
    write(self.folder / "index.json", json.dumps(index, indent=2) + "\n")
    listed = {s["file"] for shards in index["splits"].values() for s in shards}
    for path in self.folder.iterdir():
      if path.suffix in (".partial", ".keys", ".jsonl") or (path.suffix == ".array_record" and path.name not in listed):
        path.unlink()


def _encoded_chunks(preparation: Preparation, firsts: range, workers: int) -> Iterator:
  """Yields the result of `encode` for each chunk, in order; a few are computed in advance."""
  if not workers:
    yield from map(preparation.encode, firsts)
    return
  context = multiprocessing.get_context("spawn")  # threads that jax has started do not survive a fork
  pool = ProcessPoolExecutor(workers, context, _start_worker, (preparation,))
  futures: collections.deque = collections.deque()
  try:
    for first in firsts:
      futures.append(pool.submit(_encode, first))
      if len(futures) >= 4 * workers:
        yield futures.popleft().result()
    while futures:
      yield futures.popleft().result()
  finally:
    pool.shutdown(wait=True, cancel_futures=True)


_preparation: Preparation  # of this worker process


def _start_worker(preparation: Preparation) -> None:
  global _preparation
  os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process per core is enough
  _preparation = preparation


def _encode(first: int):
  return _preparation.encode(first)


def _complete_lines(state: epath.Path) -> list[dict[str, Any]]:
  """Returns the lines of a state, without one that was being written at a kill."""
  lines = []
  for text in read_bytes(state).splitlines():
    with contextlib.suppress(ValueError):
      lines.append(parse_json(text))
  return lines
