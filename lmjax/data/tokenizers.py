"""Tokenizers behind one small interface: byte-level BPE, characters and bytes; WordPiece and SentencePiece: pieces.py.

A tokenizer turns text into ids and back, and saves itself into a folder from which `load` makes it again. Text never
turns into control ids: a document that contains `<|endoftext|>` is encoded as those characters.
"""

import dataclasses
import functools
import hashlib
import importlib
import json
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import tokenizers
from etils import epath

from lmjax.utils.errors import UserError, nearest

END = "<|endoftext|>"


class Tokenizer(Protocol):
  """`size` ids, of which `start` opens a document and `end` closes it (often the same one)."""

  size: int
  start: int
  end: int

  def encode(self, text: str) -> list[int]:
    """Returns the ids of a text, without start and end."""

  def encode_many(self, texts: Sequence[str]) -> list[Sequence[int]]:
    """Returns the ids of several texts, as `encode` of each, faster."""

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text of ids; start and end stand for nothing."""

  def save(self, folder: epath.PathLike) -> None:
    """Writes the files that `load` reads."""


@dataclasses.dataclass(frozen=True)
class Settings:
  """Which tokenizer a run uses: the one at `path` (a file or folder), or one trained on its training text.

  algorithm: `bpe` (byte-level), `wordpiece` (uncased), `unigram` or `sentencepiece_bpe`, `characters`, `bytes`; size:
  ids, where it can be chosen, and what is planned with where `path` is not at hand.
  """

  algorithm: str = "bpe"
  size: int = 4096
  path: str = ""

  def __post_init__(self):
    if self.algorithm not in ALGORITHMS:
      raise ValueError(f"algorithm is one of {', '.join(ALGORITHMS)}, not {self.algorithm!r}")

  def make(self, texts: Iterable[str]) -> Tokenizer:
    """Returns the tokenizer, trained on the texts if no path is given."""
    return load(self.path) if self.path else train(self.algorithm, texts, self.size)

  def expected(self, size: int | None = None) -> Tokenizer:
    """Returns a stand-in with as many ids as this tokenizer will have, or `size`, for plans that read no text."""
    if size is None and self.path and epath.Path(self.path).expanduser().exists():
      return load(self.path)
    return Bytes(size or (257 if self.algorithm == "bytes" else self.size))


@dataclasses.dataclass(frozen=True)
class Bytes:
  """UTF-8 bytes, id = byte, and one more id for start and end."""

  size: int = 257
  start: int = 256
  end: int = 256

  def encode(self, text: str) -> list[int]:
    return list(text.encode("utf-8"))

  def encode_many(self, texts: Sequence[str]) -> list[Sequence[int]]:
    return [np.frombuffer(text.encode("utf-8"), np.uint8) for text in texts]

  def decode(self, ids: Iterable[int]) -> str:
    return bytes(i for i in ids if 0 <= i < 256).decode("utf-8", errors="replace")

  def save(self, folder: epath.PathLike) -> None:
    _write(folder, "bytes.json", "{}")


@dataclasses.dataclass(frozen=True)
class Characters:
  """The characters of an alphabet, then one id for start and end, then one for every other character."""

  alphabet: str

  @property
  def size(self) -> int:
    return len(self.alphabet) + 2

  @property
  def start(self) -> int:
    return len(self.alphabet)

  end = start

  @functools.cached_property
  def _ids(self) -> dict[str, int]:
    return {character: i for i, character in enumerate(self.alphabet)}

  def encode(self, text: str) -> list[int]:
    return [self._ids.get(character, len(self.alphabet) + 1) for character in text]

  def encode_many(self, texts: Sequence[str]) -> list[Sequence[int]]:
    return [self.encode(text) for text in texts]

  def decode(self, ids: Iterable[int]) -> str:
    known = self.alphabet
    return "".join(known[i] if i < len(known) else "\ufffd" for i in ids if i != self.end)

  def save(self, folder: epath.PathLike) -> None:
    _write(folder, "characters.json", json.dumps({"alphabet": self.alphabet}))


class BPE:
  """Byte-level byte-pair encoding (Sennrich et al., 2016; Radford et al., 2019), by the `tokenizers` library."""

  def __init__(self, tokenizer: tokenizers.Tokenizer):
    tokenizer.encode_special_tokens = True
    tokenizer.no_padding()
    tokenizer.no_truncation()
    self.fast = tokenizer  # the library's own
    self.size = max(tokenizer.get_vocab().values()) + 1
    names = (END, "<|end_of_text|>", "</s>", "</S>", "[SEP]", "<s>")
    known = [i for i in map(tokenizer.token_to_id, names) if i is not None]
    if not known:
      tokenizer.add_special_tokens([END])
      self.size += 1
    self.end = known[0] if known else tokenizer.token_to_id(END)
    begin = [i for i in map(tokenizer.token_to_id, ("<|begin_of_text|>", "<s>", "<S>", "[CLS]")) if i is not None]
    self.start = begin[0] if begin else self.end

  def encode(self, text: str) -> list[int]:
    return self.encode_many([text])[0]

  def encode_many(self, texts: Sequence[str]) -> list[Sequence[int]]:
    return [found.ids for found in self.fast.encode_batch_fast(texts, add_special_tokens=False)]

  def decode(self, ids: Iterable[int]) -> str:
    return self.fast.decode([int(i) for i in ids if i < self.size], skip_special_tokens=True)

  def save(self, folder: epath.PathLike) -> None:
    _write(folder, "tokenizer.json", self.fast.to_str())


def _train_bpe(texts: Iterable[str], size: int) -> Tokenizer:
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
  )
  tokenizer.train_from_iterator(texts, trainer)
  return BPE(tokenizer)


ALGORITHMS = {
  "bpe": _train_bpe,
  "wordpiece": lambda texts, size: _pieces().train_wordpiece(texts, size),
  "unigram": lambda texts, size: _pieces().train_sentencepiece(texts, size, "unigram"),
  "sentencepiece_bpe": lambda texts, size: _pieces().train_sentencepiece(texts, size, "bpe"),
  "characters": lambda texts, size: Characters("".join(sorted(set().union(*texts)))),
  "bytes": lambda texts, size: Bytes(),
}


def train(algorithm: str, texts: Iterable[str], size: int) -> Tokenizer:
  """Returns a tokenizer learnt from texts; `size` counts the end token, and bytes and characters ignore it."""
  if algorithm not in ALGORITHMS:
    raise UserError(f"tokenizer: no algorithm {algorithm!r}{nearest(algorithm, ALGORITHMS)}")
  if algorithm == "bpe" and size < 257:
    raise UserError(f"tokenizer: byte-level BPE needs at least 257 ids (256 bytes and an end), not {size}")
  return ALGORITHMS[algorithm](texts, size)


def load(path: epath.PathLike) -> Tokenizer:
  """Returns the tokenizer in a folder (or a run's `tokenizer/`), or of one file.

  Reads GPT-2's `encoder.json` + `vocab.bpe` (or `vocab.json` + `merges.txt`), `tokenizer.json`, SentencePiece
  `*.model`, BERT's `vocab.txt`, `characters.json`, `bytes.json`; and any other kind from a folder whose `kind.json`
  names its class, `{"kind": "package.module:Class"}`, which reads the rest by `Class.load(folder)`.

  Raises:
    UserError: nothing there is a tokenizer, or what is there is damaged.
  """
  path = epath.Path(path).expanduser()
  if not path.exists():
    raise UserError(f"tokenizer: {path} does not exist")
  if path.is_dir() and (path / "tokenizer").is_dir():
    path = path / "tokenizer"
  files = {p.name: p for p in (path.iterdir() if path.is_dir() else [path])}
  models = [p for name, p in sorted(files.items()) if name.endswith(".model")]
  try:
    if "kind.json" in files:
      module, _, name = json.loads(files["kind.json"].read_text())["kind"].partition(":")
      return getattr(importlib.import_module(module), name).load(path)
    if "bytes.json" in files:
      return Bytes()
    if "characters.json" in files:
      return Characters(json.loads(files["characters.json"].read_text())["alphabet"])
    if "tokenizer.json" in files:
      return _from_json(files["tokenizer.json"].read_text())
    if "vocab.txt" in files:
      return _pieces().read_vocabulary(files)
    for vocabulary, merges in (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")):
      if vocabulary in files and merges in files:
        return _from_merges(files[vocabulary].read_text(), files[merges].read_text())
    if models:
      return _pieces().SentencePiece(models[0].read_bytes())
    if not path.is_dir() and path.suffix == ".json":
      return _from_json(path.read_text())
  except UserError:
    raise
  except Exception as error:  # tokenizers and sentencepiece raise bare Exceptions of many kinds
    reason = str(error).strip().split("\n")[0]
    raise UserError(f"tokenizer: {path} is damaged or not what its name says: {reason}") from error
  raise UserError(
    f"tokenizer: {path} holds no tokenizer; known files: tokenizer.json, encoder.json + vocab.bpe, "
    "vocab.json + merges.txt, vocab.txt, *.model, characters.json, bytes.json"
  )


def fingerprint(tokenizer: Tokenizer) -> str:
  """Returns a hash that two tokenizers share if they encode a probe alike and have as many ids."""
  probe = "The quick brown fox, 1234567890 times; naïve façade\n\tπ ≈ 3.14159 <|endoftext|>"
  told = (tokenizer.size, tokenizer.start, tokenizer.end, *tokenizer.encode(probe))
  return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


def _pieces():
  """Returns the module of tokenizers whose pieces are of words, which a run that has none never imports."""
  return importlib.import_module("lmjax.data.pieces")


def _from_json(text: str) -> BPE:
  tokenizer = tokenizers.Tokenizer.from_str(text)
  words = isinstance(tokenizer.model, tokenizers.models.WordPiece)
  return _pieces().WordPiece(tokenizer) if words else BPE(tokenizer)


def _from_merges(vocabulary: str, merges: str) -> BPE:
  pairs = [tuple(line.split(" ")) for line in merges.split("\n") if line and not line.startswith("#version")]
  if any(len(pair) != 2 for pair in pairs):
    bad = next(" ".join(pair) for pair in pairs if len(pair) != 2)
    raise UserError(f"tokenizer: the merge {bad!r} is not two pieces with a space between them")
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(json.loads(vocabulary), pairs))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  tokenizer.add_special_tokens([END])
  return BPE(tokenizer)


def _write(folder: epath.PathLike, name: str, text: str) -> None:
  folder = epath.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  (folder / name).write_text(text)
