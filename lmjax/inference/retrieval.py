"""Search in an index of documents: by vectors, by BM25, and by both.

An index is a folder: `index.json` says what is in it; a shard `N.npy` has the vectors [rows, D] of the chunks in
`N.jsonl`; and a folder has BM25 of all chunks. Rows are numbered through all shards.
"""

import collections
import dataclasses
import functools
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xxhash
from etils import epath

from lmjax import storage
from lmjax.data.tokenizers.base import fingerprint
from lmjax.inference.chunks import Chunk
from lmjax.inference.embed import Embedder, make_embedder
from lmjax.storage.base import LoadedModel
from lmjax.utils import bm25, files, pytree
from lmjax.utils.errors import UserError, reason
from lmjax.utils.fields import Fields

NAME, FORMAT = "index.json", 1
DEPTH = 100  # hits of each list that is fused
OFFSET = 60  # of ranks, in the fused score
AGAIN = "remove the folder of the index, and repeat its lmjax index command"


class Hit(NamedTuple):
  """A chunk with its number, its cosine similarity to the question, and the score that it was ranked by."""

  row: int
  chunk: Chunk
  similarity: float
  score: float


class Shard(NamedTuple):
  """Vectors and chunks that were written together.

  parts: (file, its checksum, the number of the first chunk of it, how many), in the order of the rows.
  """

  name: str
  parts: tuple[tuple[str, str, int, int], ...]

  @property
  def rows(self) -> int:
    return sum(count for _, _, _, count in self.parts)


@dataclasses.dataclass(frozen=True)
class Settings:
  """How the vectors of an index are made: the encoder, its checksum, and the tokens of a chunk at most.

  prompt, query_prompt: what precedes chunks and questions; by default what the encoder's folder says.
  """

  encoder: str
  checksum: str
  tokens: int
  pooling: str | None = None
  prompt: str | None = None
  query_prompt: str | None = None


class Encoder(NamedTuple):
  """An encoder of chunks and questions, whose vectors have length 1."""

  loaded: LoadedModel
  chunks: Embedder
  questions: Embedder
  checksum: str

  def embed_questions(self, questions: Sequence[str]) -> np.ndarray:
    """Returns the vectors [questions, D]."""
    return self.questions.sequences(self.loaded.params, [self.questions.encode_text(q) for q in questions])


def open_encoder(
  path: str, step: int | None = None, pooling: str | None = None, prompt: str | None = None,
  query_prompt: str | None = None, batch: int = 32,
) -> Encoder:  # fmt: skip
  """Returns the encoder of a saved model.

  Raises:
    UserError: it cannot be loaded, or has no vectors.
  """
  loaded = storage.open(path, step).load()
  chunks = make_embedder(loaded, path, pooling, 0, True, batch, prompt)
  questions = chunks if query_prompt is None else dataclasses.replace(chunks, prompt=query_prompt)
  xxh3 = xxhash.xxh3_128(fingerprint(loaded.tokenizer).encode())
  for name, leaf in sorted(pytree.named_leaves(loaded.params).items()):
    xxh3.update(name.encode())
    xxh3.update(np.asarray(leaf).tobytes())
  xxh3.update(repr((chunks.poolings, chunks.prompt, questions.prompt, chunks.length)).encode())
  return Encoder(loaded, chunks, questions, xxh3.hexdigest())


@dataclasses.dataclass(frozen=True)
class Contents:
  """What index.json says: the settings, the complete files with their checksums, the shards, and the BM25 folder."""

  settings: Settings
  files: Mapping[str, str]
  shards: tuple[Shard, ...]
  bm25: str = ""

  @property
  def rows(self) -> int:
    return sum(shard.rows for shard in self.shards)

  def to_json(self) -> dict[str, Any]:
    """Returns the object that `read_contents` reads."""
    return {"format": FORMAT} | dataclasses.asdict(self)


def read_contents(folder: epath.Path) -> Contents:
  """Returns what an index contains.

  Raises:
    UserError: the folder is not an index, or its file is corrupt.
  """
  file = folder / NAME
  if not file.exists():
    raise UserError(f"{folder} is not an index: it has no {NAME}; lmjax index --files ... --output {folder} makes one")
  fields = Fields(files.read_json(file), file)
  if fields.integer("format") != FORMAT:
    raise UserError(f"{file}: format {fields.get('format')} is not supported; {AGAIN}")
  own = fields.section("settings")
  text = {key: own.text(key, None) for key in ("pooling", "prompt", "query_prompt")}
  settings = Settings(own.text("encoder"), own.text("checksum"), own.integer("tokens", least=1), **text)
  complete = fields.section("files")
  known = {name: complete.text(name) for name in complete.values}
  shards = []
  for item in fields.sequence("shards", list):
    parts = item[1] if [*map(type, item)] == [str, list] and re.fullmatch(r"\d{6}", item[0]) else [None]
    if not all(isinstance(part, list) and [*map(type, part)] == [str, str, int, int] for part in parts):
      raise fields.wrong("shards", "a list of names and parts")
    if any(first < 0 or count < 1 for _, _, first, count in item[1]):
      raise fields.wrong("shards", "a list of parts with chunks")
    shards.append(Shard(item[0], tuple(map(tuple, item[1]))))
  bm25 = fields.text("bm25", "")
  if bm25:
    files.inside(folder, bm25)
  return Contents(settings, known, tuple(shards), bm25)


def fuse(rankings: Sequence[Sequence[int]]) -> list[tuple[int, float]]:
  """Returns rows with their scores, sum over rankings of 1 / (60 + rank), best first.

  Reciprocal rank fusion (Cormack, Clarke & Buettcher, 2009); ranks are from 1.
  """
  scores: dict[int, float] = collections.defaultdict(float)
  for ranking in rankings:
    for rank, row in enumerate(ranking, 1):
      scores[row] += 1 / (OFFSET + rank)
  return sorted(scores.items(), key=lambda item: (-item[1], item[0]))


class Index:
  """An index that is searched. Vectors are compared exactly, shard by shard, so that not all need fit in memory.

  Raises:
    UserError: the folder is not a complete index, or one of its files is corrupt.
  """

  def __init__(self, folder: epath.PathLike):
    self.folder = files.expand(folder)
    self.contents = read_contents(self.folder)
    if not self.contents.bm25:
      raise UserError(f"{folder} is not complete; repeat its lmjax index command, which resumes")
    self.starts = [0, *itertools.accumulate(shard.rows for shard in self.contents.shards)]

  def vectors(self, number: int) -> np.ndarray:
    """Returns the vectors [rows, D] of a shard, mapped into memory."""
    shard = self.contents.shards[number]
    return read_vectors(self.folder, shard)

  @functools.lru_cache(maxsize=32)  # noqa: B019  # an index lives as long as its command
  def chunks(self, number: int) -> list[Chunk]:
    """Returns the chunks of a shard."""
    return read_chunks(self.folder, self.contents.shards[number])

  def chunk(self, row: int) -> Chunk:
    """Returns the chunk of a row."""
    number = int(np.searchsorted(self.starts, row, "right")) - 1
    return self.chunks(number)[row - self.starts[number]]

  def _vector(self, row: int) -> np.ndarray:
    number = int(np.searchsorted(self.starts, row, "right")) - 1
    return self.vectors(number)[row - self.starts[number]]

  def by_vector(self, queries_QxD: np.ndarray, top: int = DEPTH) -> list[list[tuple[int, float]]]:
    """Returns the nearest rows of each query with their cosine similarities, best first."""
    import faiss

    best: list[list[tuple[int, float]]] = [[] for _ in queries_QxD]
    for number, start in enumerate(self.starts[:-1]):
      vectors = np.ascontiguousarray(self.vectors(number), np.float32)
      if vectors.shape[1] != queries_QxD.shape[1]:
        raise UserError(f"{self.folder}: shard {self.contents.shards[number].name} has vectors of another width")
      k = min(top, len(vectors))
      scores, rows = faiss.knn(np.ascontiguousarray(queries_QxD), vectors, k, faiss.METRIC_INNER_PRODUCT)
      for own, ids, values in zip(best, rows, scores, strict=True):
        own += [(start + int(i), float(value)) for i, value in zip(ids, values, strict=True)]
        own.sort(key=lambda item: (-item[1], item[0]))
        del own[top:]
    return best

  @functools.cached_property
  def _bm25(self) -> Any:
    import bm25s

    folder = files.inside(self.folder, self.contents.bm25)
    try:
      model = bm25s.BM25.load(str(folder), mmap=True, show_progress=False)
      scores = model.scores
      whole = len(scores["indptr"]) and int(scores["num_docs"]) == self.contents.rows
    except Exception as error:  # whatever a corrupt file makes of it
      raise UserError(f"{folder} cannot be read: {reason(error)}; {AGAIN}") from error
    if not whole:
      raise UserError(f"{folder} is of other chunks; {AGAIN}")
    return model

  def by_words(self, questions: Sequence[str], top: int = DEPTH) -> list[list[tuple[int, float]]]:
    """Returns the best rows of each question with their BM25 scores (Robertson & Zaragoza, 2009), best first."""
    try:
      best = [bm25.best(self._bm25, question, top) for question in questions]
    except (ValueError, IndexError, TypeError, KeyError, OverflowError) as error:
      raise UserError(f"{self.folder / self.contents.bm25} cannot be read: {reason(error)}; {AGAIN}") from error
    if any(not 0 <= row < self.contents.rows for own in best for row, _ in own):
      raise UserError(f"{self.folder / self.contents.bm25} is of other chunks; {AGAIN}")
    return best

  def search(self, questions: Sequence[str], queries_QxD: np.ndarray, top: int) -> Iterator[list[Hit]]:
    """Yields the best chunks of each question, of both rankings fused."""
    for vector, near, same in zip(queries_QxD, self.by_vector(queries_QxD), self.by_words(questions), strict=True):
      ranked = fuse([[row for row, _ in near], [row for row, _ in same]])[:top]
      similarity = dict(near)
      yield [
        Hit(row, self.chunk(row), similarity[row] if row in similarity else float(self._vector(row) @ vector), score)
        for row, score in ranked
      ]


def read_vectors(folder: epath.Path, shard: Shard) -> np.ndarray:
  """Returns the vectors [rows, D] of a shard, mapped into memory."""
  file = folder / f"{shard.name}.npy"
  try:
    with files.reading(file):
      vectors = np.load(file, mmap_mode=None if files.is_remote(file) else "r", allow_pickle=False)
  except UserError:
    raise
  except Exception as error:  # whatever numpy makes of a corrupt header
    raise UserError(f"{file} cannot be read: {reason(error)}; {AGAIN}") from error
  if vectors.ndim != 2 or len(vectors) != shard.rows or vectors.dtype != np.float32:
    raise UserError(f"{file} does not have the vectors of {shard.rows:,} chunks; {AGAIN}")
  return vectors


def read_chunks(folder: epath.Path, shard: Shard) -> list[Chunk]:
  """Returns the chunks of a shard."""
  file, chunks = folder / f"{shard.name}.jsonl", []
  names = (name for name, _, _, count in shard.parts for _ in range(count))
  lines = files.read_text(file).splitlines()
  if len(lines) != shard.rows:
    raise UserError(f"{file} does not have {shard.rows:,} chunks; {AGAIN}")
  for number, (name, content) in enumerate(zip(names, lines, strict=True), 1):
    try:
      record = Fields(files.parse_json(content), f"{file}:{number}")
    except ValueError as error:
      raise UserError(f"{file}:{number} {error}") from error
    line, start, end = (record.integer(key) for key in ("line", "start", "end"))
    chunks.append(Chunk(name, line, start, end, record.text("text")))
  return chunks
