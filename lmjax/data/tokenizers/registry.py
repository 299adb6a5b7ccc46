"""Trains tokenizers, and loads them from their files.

A tokenizer saves itself into a folder from which `load` restores it. Text never becomes special tokens: a document that
contains `<|endoftext|>` is encoded as those characters.
"""

import dataclasses
from collections.abc import Iterable
from fnmatch import fnmatch
from typing import Any

from etils import epath

from lmjax.data.tokenizers.base import Bytes, Tokenizer
from lmjax.utils import names, trust
from lmjax.utils.errors import UserError, did_you_mean, reason
from lmjax.utils.fields import Fields
from lmjax.utils.files import expand, find, is_hub, read_json


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
    tokenizer = load(self.path) if self.path else train(self.algorithm, texts, self.size)
    if tokenizer.end is None:
      raise UserError(
        f"tokenizer: {self.path} has no end, which training needs; name an eos_token in its tokenizer_config.json"
      )
    return tokenizer

  def expected(self, size: int | None = None) -> Tokenizer:
    """Returns a stand-in with as many ids as this tokenizer will have, or `size`, for planning without text."""
    if size is None and self.path and (is_hub(self.path) or expand(self.path).exists()):
      return load(self.path)
    return Bytes(size or (257 if self.algorithm == "bytes" else self.size))

  @staticmethod
  def debug(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the config section of a tokenizer shrunk for debugging: bytes, if the data does not need its kind."""
    if "kind" in settings or settings.get("algorithm") == "wordpiece":
      return settings | {"path": "", "size": 512}
    return {"algorithm": "bytes"}


# How each kind is trained on texts, and how it is loaded from the files it needs: the first that are all there.
ALGORITHMS = {
  "bpe": "lmjax.data.tokenizers.bpe:train_bpe",
  "wordpiece": "lmjax.data.tokenizers.subword:train_wordpiece",
  "unigram": "lmjax.data.tokenizers.subword:train_unigram",
  "sentencepiece_bpe": "lmjax.data.tokenizers.subword:train_sentencepiece_bpe",
  "characters": "lmjax.data.tokenizers.characters:train_characters",
  "bytes": "lmjax.data.tokenizers.base:train_bytes",
}
FILES = (
  (("bytes.json",), "lmjax.data.tokenizers.base:load_bytes"),
  (("characters.json",), "lmjax.data.tokenizers.characters:load_characters"),
  (("tokenizer.json",), "lmjax.data.tokenizers.pretrained:load_json"),
  (("vocab.txt",), "lmjax.data.tokenizers.pretrained:load_vocabulary"),
  (("encoder.json", "vocab.bpe"), "lmjax.data.tokenizers.pretrained:load_merges"),
  (("vocab.json", "merges.txt"), "lmjax.data.tokenizers.pretrained:load_merges"),
  (("source.spm", "target.spm", "vocab.json"), "lmjax.data.tokenizers.marian:load_marian"),
  (("*.model",), "lmjax.data.tokenizers.pretrained:load_sentencepiece"),
  (("*config.json",), "lmjax.data.tokenizers.pretrained:load_byt5"),
)


def train(algorithm: str, texts: Iterable[str], size: int) -> Tokenizer:
  """Returns a tokenizer trained on texts; `size` includes the end token; bytes and characters ignore it.

  Raises:
    UserError: an unknown algorithm, or a size that it cannot have.
  """
  if algorithm not in ALGORITHMS:
    raise UserError(f"tokenizer: no algorithm {algorithm!r}{did_you_mean(algorithm, ALGORITHMS)}")
  return names.load(ALGORITHMS[algorithm])(texts, size)


def load(path: epath.PathLike) -> Tokenizer:
  """Returns the tokenizer in a folder (or in the `tokenizer/` of a run), or of one file.

  Reads GPT-2's `encoder.json` + `vocab.bpe` (or `vocab.json` + `merges.txt`), `tokenizer.json`, SentencePiece
  `*.model`, BERT's `vocab.txt`, `characters.json`, `bytes.json`. Any other class can be named in the folder's
  `kind.json`, `{"kind": "package.module:Class"}`; `Class.load(folder)` then reads the folder.

  Raises:
    UserError: the path does not exist or is not a tokenizer, or its files are corrupt.
  """
  path = find(path, weights=False)
  if not path.exists():
    raise UserError(f"tokenizer: {path} does not exist")
  if path.is_dir() and (path / "tokenizer").is_dir():
    trust.check_links(path, "tokenizer")
    path = path / "tokenizer"
  files = {p.name: p for p in (sorted(path.iterdir()) if path.is_dir() else [path])}
  if not path.is_dir() and path.suffix == ".json" and path.name not in ("bytes.json", "characters.json"):
    files = {"tokenizer.json": path}
  trust.check_links(path, *files)
  try:
    if "kind.json" in files:
      file = files["kind.json"]
      kind = Fields(read_json(file), file).text("kind")
      return trust.load(trust.mark(names.current(kind), file), "kind", Tokenizer).load(path)
    for patterns, loader in FILES:
      needed = [next((file for name, file in files.items() if fnmatch(name, p)), None) for p in patterns]
      if None not in needed:
        return names.load(loader)(*needed)
  except UserError:
    raise
  except Exception as error:  # tokenizers and sentencepiece raise bare Exceptions of many kinds
    raise UserError(f"tokenizer: {path} is corrupt, or not what its name says: {reason(error)}") from error
  raise UserError(
    f"tokenizer: {path} contains no tokenizer; supported files: {', '.join(' + '.join(p) for p, _ in FILES)}"
  )
