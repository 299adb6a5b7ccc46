"""Making an index of documents: only what has changed is embedded, and an interrupted command resumes."""

import dataclasses
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import xxhash
from etils import epath

from lmjax.data.sources.base import BadRecord, check_skipped_fraction
from lmjax.data.sources.kinds import kind_of
from lmjax.data.sources.paths import expand_paths, read_bytes
from lmjax.inference.chunks import Chunk, chunks_of, counter
from lmjax.inference.retrieval import (
  NAME,
  Contents,
  Encoder,
  Settings,
  Shard,
  read_chunks,
  read_contents,
  read_vectors,
)
from lmjax.utils import bm25, files
from lmjax.utils.errors import UserError, reason

ROWS = 1024  # of a shard: an interrupted command loses the work of fewer chunks
SUFFIXES = (".txt", ".text", ".md")  # of what a folder stands for


class Summary(NamedTuple):
  """What was done: files and chunks in the index, chunks that were embedded, and the files that were skipped."""

  files: int
  chunks: int
  embedded: int
  skipped: Sequence[BadRecord]


class Document(NamedTuple):
  """A file of text."""

  name: str
  checksum: str
  text: str


@dataclasses.dataclass
class Builder:
  """Brings an index up to date with files: those that it no longer stands for are removed.

  rows: chunks of a shard. A file has to fit in memory, and the words of all chunks while BM25 is made; vectors do not.

  Raises:
    UserError: the folder has an index of another encoder or of other chunks.
  """

  folder: epath.Path
  settings: Settings
  encoder: Encoder
  rows: int = ROWS

  def __post_init__(self):
    self.skipped: list[BadRecord] = []
    self.embedded = self.total = 0
    self.contents = Contents(self.settings, {}, ())
    if not (self.folder / NAME).exists():
      return
    self.contents = read_contents(self.folder)
    old = self.contents.settings
    if old.checksum != self.settings.checksum:
      raise UserError(
        f"index: {self.folder} was made by another encoder ({old.encoder}, checksum {old.checksum[:12]}, not "
        f"{self.settings.checksum[:12]}); choose another --output, or remove the folder"
      )
    if old.tokens != self.settings.tokens:
      raise UserError(f"index: {self.folder} has chunks of {old.tokens} tokens, not {self.settings.tokens}")
    self.contents = dataclasses.replace(self.contents, settings=self.settings)  # the encoder may have moved

  def run(self, patterns: Sequence[str]) -> Iterator[Summary]:
    """Yields what has been done, after each file."""
    paths = list(dict.fromkeys(expand_paths(patterns, SUFFIXES)))
    self.total = len(paths)
    present: dict[str, str] = {}
    waiting: list[tuple[Document, int, Chunk]] = []
    ended: dict[str, str] = {}
    self._remove_unknown()
    count = counter(self.encoder.chunks.tokenizer)
    for number, path in enumerate(paths, 1):
      document = self._read(path)
      if isinstance(document, BadRecord):
        self.skipped.append(document)
        check_skipped_fraction(number, self.skipped)
      else:
        present[document.name] = document.checksum
        if self.contents.files.get(document.name) != document.checksum:
          done = self._done(document)
          for i, chunk in enumerate(chunks_of(document.name, document.text, count, self.settings.tokens)):
            if i >= done:
              waiting.append((document, i, chunk))
            if len(waiting) == self.rows:
              self._write(waiting, ended)
              waiting, ended = [], {}
          ended[document.name] = document.checksum
      yield Summary(number, self.contents.rows + len(waiting), self.embedded, self.skipped)
    self._write(waiting, ended)
    self._compact(present)
    self._finish()
    yield Summary(len(present), self.contents.rows, self.embedded, self.skipped)

  def _read(self, path: epath.Path) -> Document | BadRecord:
    try:
      if (kind := kind_of(path)) != "text":
        return BadRecord(str(path), f"is {kind}, not text")
      data = bytes(read_bytes(path))
      text = data.decode("utf-8-sig")
    except UnicodeError:
      return BadRecord(str(path), "is not UTF-8")
    except UserError as error:
      return BadRecord(str(path), f"cannot be read: {reason(error)}")
    if "\0" in text:
      return BadRecord(str(path), "is not text: it has null characters")
    return Document(str(path), xxhash.xxh3_128(data).hexdigest(), text)

  def _done(self, document: Document) -> int:
    """Returns how many chunks of a document are in the index, which was interrupted in it."""
    parts = (part for shard in self.contents.shards for part in shard.parts)
    return sum(count for name, checksum, _, count in parts if (name, checksum) == (document.name, document.checksum))

  def _write(self, waiting: Sequence[tuple[Document, int, Chunk]], ended: Mapping[str, str]) -> None:
    """Writes a shard of chunks, and which files are complete with it."""
    shards = self.contents.shards
    if waiting:
      texts = [self.encoder.chunks.encode_text(chunk.text) for _, _, chunk in waiting]
      vectors = self.encoder.chunks.sequences(self.encoder.loaded.params, texts)
      if not np.isfinite(vectors).all():
        raise UserError("index: the encoder gives vectors that are not finite")
      parts: list[tuple[str, str, int, int]] = []
      for document, number, _ in waiting:
        if parts and parts[-1][:2] == (document.name, document.checksum):
          parts[-1] = (*parts[-1][:3], parts[-1][3] + 1)
        else:
          parts.append((document.name, document.checksum, number, 1))
      shard = self._shard(vectors, [chunk for _, _, chunk in waiting], parts)
      shards, self.embedded = (*shards, shard), self.embedded + len(waiting)
    if waiting or ended:
      self._save(shards=shards, files={**self.contents.files, **ended}, bm25="")

  def _shard(self, vectors: np.ndarray, chunks: Sequence[Chunk], parts: Sequence[tuple[str, str, int, int]]) -> Shard:
    name = f"{max((int(shard.name) for shard in self.contents.shards), default=-1) + 1:06d}"
    while (self.folder / f"{name}.npy").exists():
      name = f"{int(name) + 1:06d}"
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(vectors, np.float32))
    files.make_folder(self.folder)
    files.write(self.folder / f"{name}.npy", stream.getvalue())
    records = ({key: value for key, value in chunk._asdict().items() if key != "file"} for chunk in chunks)
    files.write(self.folder / f"{name}.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    return Shard(name, tuple(parts))

  def _save(self, **changes) -> None:
    self.contents = dataclasses.replace(self.contents, **changes)
    files.make_folder(self.folder)
    files.write(self.folder / NAME, json.dumps(self.contents.to_json()) + "\n")

  def _compact(self, present: Mapping[str, str]) -> None:
    """Leaves out the chunks of files that have changed or are gone, and joins small shards; nothing is embedded."""
    known = dict(self.contents.files)
    current = {name: sum_ for name, sum_ in known.items() if present.get(name) == sum_}
    groups: list[list[Shard]] = []
    for shard in self.contents.shards:
      if groups and sum(own.rows for own in (*groups[-1], shard)) <= self.rows:
        groups[-1].append(shard)
      else:
        groups.append([shard])
    kept: list[Shard] = []
    for group in groups:
      live = [(shard, *part) for shard in group for part in shard.parts if current.get(part[0]) == part[1]]
      if len(group) == 1 and len(live) == len(group[0].parts):
        kept.append(group[0])
      elif live:
        kept.append(self._join(group, current))
    if tuple(kept) != self.contents.shards or current != known:
      self._save(shards=tuple(kept), files=current, bm25="")
      self._remove_unknown()

  def _join(self, group: Sequence[Shard], current: Mapping[str, str]) -> Shard:
    vectors, chunks, parts = [], [], []
    for shard in group:
      own_vectors, own_chunks, start = read_vectors(self.folder, shard), read_chunks(self.folder, shard), 0
      for part in shard.parts:
        rows, start = slice(start, start + part[3]), start + part[3]
        if current.get(part[0]) == part[1]:
          vectors.append(own_vectors[rows])
          chunks += own_chunks[rows]
          parts.append(part)
    return self._shard(np.concatenate(vectors), chunks, parts)

  def _finish(self) -> None:
    """Makes BM25 of all chunks, where they have changed."""
    if self.contents.bm25:
      return
    if not self.contents.rows:
      raise UserError(f"index: the files have no text; the last: {self.skipped[-1] if self.skipped else 'empty'}")
    shards = self.contents.shards
    model = bm25.build(chunk.text for shard in shards for chunk in read_chunks(self.folder, shard))
    name = f"bm25-{xxhash.xxh3_64_hexdigest(json.dumps(self.contents.shards).encode())}"
    with files.new_folder(self.folder / name) as folder:
      model.save(str(folder), show_progress=False)
    self._save(bm25=name)
    self._remove_unknown()

  def _remove_unknown(self) -> None:
    """Removes shards and BM25 folders that a kill or a change left."""
    if not self.folder.exists():
      return
    known = {f"{shard.name}{suffix}" for shard in self.contents.shards for suffix in (".npy", ".jsonl")}
    with files.writing(self.folder):
      for path in self.folder.iterdir():
        if path.name.startswith("bm25-") and path.name != self.contents.bm25:
          epath.Path(path).rmtree()
        elif path.suffix in (".npy", ".jsonl") and path.stem.isdigit() and path.name not in known:
          path.unlink()
