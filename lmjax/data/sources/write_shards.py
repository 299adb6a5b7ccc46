"""Preparation: documents are read, filtered, tokenized by several processes, and written in their order by one.

The work is cut into chunks of documents, whose results are taken in order, so what is written does not depend on the
number of processes. Shards end where a chunk ends; after each the state of the work is written down, and a run that was
killed goes on from there.
"""

import collections
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

from lmjax.data.sources.base import BadRecord, Source, check_skipped_fraction
from lmjax.data.sources.shards import SIZE, UNFINISHED, VERSION, digest, read_index
from lmjax.data.tokenizers import base
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.utils.errors import UserError

CHUNK = 256  # documents that a process takes at a time, at most
COUNTS = ("read", "bad", "filtered", "duplicates", "documents", "tokens", "bytes")


@dataclasses.dataclass(frozen=True)
class Preparation:
  """What is prepared, and how.

  validation: the share of documents, by the hash of their text, that make the validation split.
  deduplicate: keeps the first of documents whose text is the same but for white space around it.
  keep: keeps the documents for which it is true.
  shard: bytes after which a shard ends.
  """

  source: Source
  tokenizer: Tokenizer
  validation: float = 0.0
  deduplicate: bool = False
  keep: Callable[[str], bool] | None = None
  shard: int = 64 * 2**20

  def __post_init__(self):
    if not 0 <= self.validation < 1:
      raise ValueError(f"the validation share is at least 0 and below 1, not {self.validation}")

  @property
  def dtype(self) -> str:
    return "<u2" if self.tokenizer.size <= 2**16 else "<u4"

  @property
  def chunk(self) -> int:
    """Documents of a chunk: few enough that a corpus of few large ones is shared out too."""
    return min(CHUNK, max(len(self.source) // 64, 1))

  def described(self) -> dict[str, Any]:
    """What must be the same for a run to go on with what another one began."""
    keep = f"{self.keep.__module__}:{self.keep.__qualname__}" if self.keep else ""
    return {
      "version": VERSION,
      "source": re.sub(r" at 0x[0-9a-f]+", "", repr(self.source))[:2000],  # a function's address changes
      "records": len(self.source),
      "tokenizer": base.fingerprint(self.tokenizer),
      "dtype": self.dtype,
      "validation": self.validation,
      "deduplicate": self.deduplicate,
      "keep": keep,
      "shard": self.shard,
    }

  def encode(self, first: int) -> tuple[list[tuple[bytes, bytes]], dict[str, int], list[BadRecord]]:
    """Returns (hash of the text, record) of each document of the chunk that begins at `first`, counts, bad records."""
    found = [self.source[i] for i in range(first, min(first + self.chunk, len(self.source)))]
    bad = [f for f in found if isinstance(f, BadRecord)]
    texts = [f for f in found if isinstance(f, str) and f.strip()]
    kept = [text for text in texts if self.keep(text)] if self.keep else texts
    records = []
    for text, ids in zip(kept, self.tokenizer.encode_many(kept), strict=True):
      raw = text.encode("utf-8")
      key = hashlib.blake2b(raw.strip(), digest_size=16).digest()
      records.append((key, SIZE.pack(len(raw)) + np.asarray(ids, self.dtype).tobytes()))
    return records, {"read": len(found), "bad": len(bad), "filtered": len(texts) - len(kept)}, bad

  def run(self, folder: epath.PathLike, workers: int = 0) -> Iterator[tuple[int, dict[str, int]]]:
    """Writes the folder, yielding (documents read of the source, counts so far) after each chunk.

    Raises:
      UserError: the folder holds something else, too many records are bad, a worker died, or a write failed.
    """
    folder = epath.Path(folder).expanduser()
    if (folder / "index.json").exists():
      if read_index(folder)["made"] != self.described():
        raise UserError(f"prepare: {folder} holds other prepared data; choose another --output")
      return
    folder.mkdir(parents=True, exist_ok=True)
    work = _Work(self, folder)
    firsts = range(work.next, len(self.source), self.chunk)
    bad: list[BadRecord] = []
    try:
      for first, (records, counts, more) in zip(firsts, _in_order(self, firsts, workers), strict=True):
        bad += more
        check_skipped_fraction(work.counts["read"] + counts["read"] - work.resumed, bad)
        work.write(records, counts)
        after = min(first + self.chunk, len(self.source))
        if work.written >= self.shard:
          work.cut(after)
        yield after, work.counts
      work.finish(bad)
    except (OSError, RuntimeError) as error:  # Riegeli raises RuntimeError for a full disk
      if isinstance(error, BrokenProcessPool):
        raise UserError("prepare: a worker process died, perhaps for want of memory; try fewer --workers") from error
      raise UserError(
        f"prepare: {folder} cannot be written: {str(error).splitlines()[0]}; what is whole stays, and the same "
        "command goes on from there"
      ) from error


class _Work:
  """The writing of a folder: open shards, counts, hashes seen; begun anew or taken up where it was left."""

  def __init__(self, preparation: Preparation, folder: epath.Path):
    self.preparation, self.folder = preparation, folder
    self.next, self.counts = 0, dict.fromkeys(COUNTS, 0)
    self.resumed = 0  # records read by runs before this one
    self.splits: dict[str, list[dict]] = {"train": []} | ({"validation": []} if preparation.validation else {})
    self._keys: list[bytes] = []  # of the open shards
    self._seen: set[bytes] = set()
    self._take_up()
    self._open()

  def _take_up(self) -> None:
    made, state = self.preparation.described(), self.folder / UNFINISHED
    lines = [line for line in state.read_text().splitlines() if _is_json(line)] if state.exists() else []
    if lines and json.loads(lines[0]) != made:
      raise UserError(f"prepare: {self.folder} holds part of another preparation; delete it or choose another --output")
    if not lines:
      self.preparation.tokenizer.save(self.folder / "tokenizer")
    state.write_text("".join(line + "\n" for line in lines or [json.dumps(made)]))  # without a line that was cut off
    for line in map(json.loads, lines[1:]):
      self.next, self.counts, self.resumed = line["next"], line["counts"], line["counts"]["read"]
      for split, shard in line["shards"].items():
        self.splits[split].append(shard)
    for path in sorted(self.folder.glob("*.keys")):
      if int(path.stem) < len(self.splits["train"]):
        raw = path.read_bytes()
        self._seen |= {raw[i : i + 16] for i in range(0, len(raw), 16)}

  def _path(self, split: str) -> epath.Path:
    return self.folder / f"{split}-{len(self.splits[split]):05}.array_record"

  def _open(self) -> None:
    self.written = 0
    self._open_counts = {split: dict.fromkeys(("documents", "tokens", "bytes"), 0) for split in self.splits}
    # A record a group, so that any one can be read alone; ids do not compress much.
    options = "group_size:1,uncompressed"
    self._writers = {split: ArrayRecordWriter(f"{self._path(split)}.partial", options) for split in self.splits}

  def write(self, records: list[tuple[bytes, bytes]], counts: dict[str, int]) -> None:
    """Writes the documents of a chunk to the open shards."""
    for key, value in counts.items():
      self.counts[key] += value
    width = np.dtype(self.preparation.dtype).itemsize
    for key, record in records:
      if self.preparation.deduplicate:
        if key in self._seen:
          self.counts["duplicates"] += 1
          continue
        self._seen.add(key)
        self._keys.append(key)
      drawn = int.from_bytes(key[:8], "little") / 2**64
      split = "validation" if drawn < self.preparation.validation else "train"
      self._writers[split].write(record)
      self.written += len(record)
      sizes = {"documents": 1, "tokens": (len(record) - SIZE.size) // width, "bytes": SIZE.unpack_from(record)[0]}
      for name, value in sizes.items():
        self._open_counts[split][name] += value
        self.counts[name] += value

  def cut(self, after: int) -> None:
    """Closes the open shards behind a chunk, and notes that the work is done up to document `after`."""
    shards = {}
    if self.preparation.deduplicate:
      (self.folder / f"{len(self.splits['train']):05}.keys").write_bytes(b"".join(self._keys))
      self._keys = []
    for split, writer in self._writers.items():
      writer.close()
      path = self._path(split)
      partial = epath.Path(f"{path}.partial")
      size, sha256 = partial.stat().length, digest(partial)
      partial.rename(path)
      shards[split] = {"file": path.name, "size": size, "sha256": sha256, **self._open_counts[split]}
    with (self.folder / UNFINISHED).open("a") as file:
      file.write(json.dumps({"next": after, "counts": self.counts, "shards": shards}) + "\n")
    for split, shard in shards.items():
      self.splits[split].append(shard)
    self._open()

  def finish(self, bad: list[BadRecord]) -> None:
    """Closes the last shards and writes the index."""
    if not self.counts["documents"]:
      raise UserError(f"prepare: no document is left of the {self.counts['read']} read; nothing is written")
    self.cut(len(self.preparation.source))
    for writer in self._writers.values():
      writer.close()
    index = {
      "version": VERSION,
      "made": self.preparation.described(),
      "tokenizer": base.fingerprint(self.preparation.tokenizer),
      "dtype": self.preparation.dtype,
      "counts": self.counts,
      "splits": {split: [s for s in shards if s["documents"]] for split, shards in self.splits.items()},
      "bad": [f"{record.where}: {record.why}" for record in bad[:100]],
    }
    temporary = self.folder / "index.json.partial"
    temporary.write_text(json.dumps(index, indent=2) + "\n")
    temporary.rename(self.folder / "index.json")
    listed = {s["file"] for shards in index["splits"].values() for s in shards}
    for path in self.folder.iterdir():
      if path.suffix in (".partial", ".keys", ".jsonl") or (path.suffix == ".array_record" and path.name not in listed):
        path.unlink()


def _in_order(preparation: Preparation, firsts: range, workers: int) -> Iterator:
  """Yields the result of each chunk, in order; a few are worked on ahead."""
  if not workers:
    yield from map(preparation.encode, firsts)
    return
  context = multiprocessing.get_context("spawn")  # jax has threads by now, which a fork would lose
  pool = ProcessPoolExecutor(workers, context, _start_worker, (preparation,))
  waiting: collections.deque = collections.deque()
  try:
    for first in firsts:
      waiting.append(pool.submit(_work_on, first))
      if len(waiting) >= 4 * workers:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()
  finally:
    pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(preparation: Preparation) -> None:
  global _preparation
  os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a process a core is enough
  _preparation = preparation


def _work_on(first: int):
  return _preparation.encode(first)


def _is_json(line: str) -> bool:
  """Whether a line is whole; one cut off by a kill is not."""
  try:
    json.loads(line)
  except json.JSONDecodeError:
    return False
  return True
