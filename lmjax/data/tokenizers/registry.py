"""Trains tokenizers, and loads them from their files.

A tokenizer saves itself into a folder from which `load` restores it. Text never becomes special tokens: a document that
contains `<|endoftext|>` is encoded as those characters.
"""

import dataclasses
import importlib
import json
from collections.abc import Callable, Iterable
from typing import Any

import tokenizers
from etils import epath

from lmjax.data.tokenizers import subword
from lmjax.data.tokenizers.base import Bytes, Characters, Tokenizer
from lmjax.data.tokenizers.bpe import BPE, from_merges, train_bpe
from lmjax.utils import renames
from lmjax.utils.errors import UserError, did_you_mean


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
  """The tokenizer of a run: the one at `path` (a file or folder), or one trained on the training text.

  algorithm: `bpe` (byte-level), `wordpiece` (uncased), `unigram` or `sentencepiece_bpe`, `characters`, `bytes`. size:
  number of ids, if the algorithm lets one choose it; `lmjax plan` also uses it if `path` is not available.
  """

  algorithm: str = "bpe"
  size: int = 4096
  path: str = ""

  def __post_init__(self):
    if self.algorithm not in ALGORITHMS:
      raise ValueError(f"algorithm must be one of {', '.join(ALGORITHMS)}, not {self.algorithm!r}")

  def make(self, texts: Iterable[str]) -> Tokenizer:
    """Returns the tokenizer; without a path, it is trained on the texts."""
    return load(self.path) if self.path else train(self.algorithm, texts, self.size)

  def expected(self, size: int | None = None) -> Tokenizer:
    """Returns a stand-in with as many ids as this tokenizer will have, or `size`, for planning without text."""
    if size is None and self.path and epath.Path(self.path).expanduser().exists():
      return load(self.path)
    return Bytes(size or (257 if self.algorithm == "bytes" else self.size))

  @staticmethod
  def debug(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the config section of a tokenizer shrunk for debugging: bytes, if the data does not need its kind."""
    if "kind" in settings or settings.get("algorithm") == "wordpiece":
      return settings | {"path": "", "size": 512}
    return {"algorithm": "bytes"}


ALGORITHMS: dict[str, Callable[[Iterable[str], int], Tokenizer]] = {
  "bpe": train_bpe,
  "wordpiece": lambda texts, size: subword.train_wordpiece(texts, size),
  "unigram": lambda texts, size: subword.train_sentencepiece(texts, size, "unigram"),
  "sentencepiece_bpe": lambda texts, size: subword.train_sentencepiece(texts, size, "bpe"),
  "characters": lambda texts, size: Characters("".join(sorted(set().union(*texts)))),
  "bytes": lambda texts, size: Bytes(),
}


def train(algorithm: str, texts: Iterable[str], size: int) -> Tokenizer:
  """Returns a tokenizer trained on texts; `size` includes the end token; bytes and characters ignore it.

  Raises:
    UserError: an unknown algorithm, or a size that it cannot have.
  """
  if algorithm not in ALGORITHMS:
    raise UserError(f"tokenizer: no algorithm {algorithm!r}{did_you_mean(algorithm, ALGORITHMS)}")
  if algorithm == "bpe" and size < 257:
    raise UserError(f"tokenizer: byte-level BPE needs at least 257 ids (256 bytes and an end), not {size}")
  return ALGORITHMS[algorithm](texts, size)


def load(path: epath.PathLike) -> Tokenizer:
  """Returns the tokenizer in a folder (or in the `tokenizer/` of a run), or of one file.

  Reads GPT-2's `encoder.json` + `vocab.bpe` (or `vocab.json` + `merges.txt`), `tokenizer.json`, SentencePiece
  `*.model`, BERT's `vocab.txt`, `characters.json`, `bytes.json`. Any other class can be named in the folder's
  `kind.json`, `{"kind": "package.module:Class"}`; `Class.load(folder)` then reads the folder.

  Raises:
    UserError: the path does not exist or is not a tokenizer, or its files are corrupt.
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
      kind = json.loads(files["kind.json"].read_text())["kind"]
      module, _, name = renames.dotted(kind).partition(":")
      return getattr(importlib.import_module(module), name).load(path)
    if "bytes.json" in files:
      return Bytes()
    if "characters.json" in files:
      return Characters(json.loads(files["characters.json"].read_text())["alphabet"])
    if "tokenizer.json" in files:
      return _from_json(files["tokenizer.json"].read_text())
    if "vocab.txt" in files:
      return subword.read_vocabulary(files)
    for vocabulary, merges in (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")):
      if vocabulary in files and merges in files:
        return from_merges(files[vocabulary].read_text(), files[merges].read_text())
    if models:
      return subword.SentencePiece(models[0].read_bytes())
    if not path.is_dir() and path.suffix == ".json":
      return _from_json(path.read_text())
  except UserError:
    raise
  except Exception as error:  # tokenizers and sentencepiece raise bare Exceptions of many kinds
    reason = str(error).strip().split("\n")[0]
    raise UserError(f"tokenizer: {path} is corrupt or has another format than its name says: {reason}") from error
  raise UserError(
    f"tokenizer: {path} contains no tokenizer; supported files: tokenizer.json, encoder.json + vocab.bpe, "
    "vocab.json + merges.txt, vocab.txt, *.model, characters.json, bytes.json"
  )


def _from_json(text: str) -> BPE:
  tokenizer = tokenizers.Tokenizer.from_str(text)
  is_wordpiece = isinstance(tokenizer.model, tokenizers.models.WordPiece)
  return subword.WordPiece(tokenizer) if is_wordpiece else BPE(tokenizer)
