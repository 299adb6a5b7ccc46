"""Vectors of tokens, words, texts and pairs of texts, from any model that reads text."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.data.batch import Batch
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.data.tokenizers.bpe import BPE
from lmjax.data.tokenizers.subword import WordPiece
from lmjax.data.tokenizers.words import spell
from lmjax.tasks.base import Task
from lmjax.utils.errors import UserError
from lmjax.utils.pytree import Tree

POOLINGS = ("first", "mean", "last")
STEP = 16  # rows are padded to a multiple of it, so that few shapes are compiled


@dataclasses.dataclass(frozen=True)
class TokenizedText:
  """A text as the model reads it: ids (words, for a model that spells them), kinds of sentence, and words' pieces."""

  tokens: list
  types: list[int]
  inside: slice  # what is text, without what stands around it
  words: list[slice] | None = None


@dataclasses.dataclass(frozen=True)
class Embedder:
  """Embeds texts with a trained task's model.

  pooling: a text's vector is that of its `first` token ([CLS]), the `mean` over its tokens, or its `last` token's.
  layer: which one's vectors, from 1, or 0 for the model's final ones; in ELMo layer 0 is the top and 1 the words'.
  normalize: vectors of length 1. batch: texts computed together.
  """

  task: Task
  tokenizer: Tokenizer
  length: int
  pooling: str = "mean"
  layer: int = 0
  normalize: bool = False
  batch: int = 32

  def __post_init__(self):
    if self.pooling not in POOLINGS:
      raise ValueError(f"pooling is one of {', '.join(POOLINGS)}, not {self.pooling!r}")
    if self.layer < 0 or self.batch < 1:
      raise ValueError("layer is at least 0, batch at least 1")

  def read(self, text: str, other: str | None = None, by_word: bool = False) -> TokenizedText:
    """Returns a text, or a pair, as the model reads it, cut to its length.

    Raises:
      UserError: pieces cannot be told apart by words.
    """
    spelt = "characters" in self.task.spec(1, 1)
    if spelt:
      pieces = self.tokenizer.words(text.strip()) if not by_word else text.split()
      before, between, after = (self.tokenizer.vocabulary[i] for i in (0, 1, 1))
      second = [] if other is None else self.tokenizer.words(other.strip())
      words = [slice(i, i + 1) for i in range(len(pieces))]
    else:
      words, pieces = _pieces(self.tokenizer, text) if by_word else (None, list(self.tokenizer.encode(text)))
      before, between, after = self.tokenizer.start, self.tokenizer.end, self.tokenizer.end
      second = [] if other is None else list(self.tokenizer.encode(other))
    closed = spelt or isinstance(self.tokenizer, WordPiece) or other is not None
    room = self.length - 1 - (1 if closed else 0) - (1 if other is not None else 0)
    while len(pieces) + len(second) > room:
      (pieces if len(pieces) > len(second) else second).pop()
    tokens = [before, *pieces, *([between] if closed else [])]
    types = [0] * len(tokens)
    if other is not None:
      tokens += [*second, after]
      types += [1] * (len(tokens) - len(types))
    if words is not None:
      words = [slice(w.start + 1, w.stop + 1) for w in words if w.stop <= len(pieces)]
    return TokenizedText(tokens, types, slice(1, 1 + len(pieces)), words if by_word else None)

  def vectors(self, params: Tree, texts: Sequence[TokenizedText]) -> Iterator[tuple[int, np.ndarray]]:
    """Yields each text's number and the vectors of all its tokens [L, D], those of like length together."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i].tokens))
    for start in range(0, len(order), self.batch):
      group = order[start : start + self.batch]
      longest = max(len(texts[i].tokens) for i in group)
      width = min(-(-longest // STEP) * STEP, max(self.length, longest))
      missing = self.batch - len(group)  # one number of rows, one compilation a width
      batch = self.rows([texts[i] for i in group] + [texts[group[0]]] * missing, width)
      found = np.asarray(self._forward(params, batch))
      for row, i in enumerate(group):
        yield i, found[row, : len(texts[i].tokens)]

  def tokens(self, params: Tree, texts: Sequence[TokenizedText]) -> list[np.ndarray]:
    """Returns for each text the vectors of its tokens, or the means over its words' [.., D]."""
    found: list[np.ndarray] = [np.zeros(0)] * len(texts)
    for i, vectors in self.vectors(params, texts):
      words = texts[i].words
      found[i] = self._scaled(
        vectors[texts[i].inside] if words is None else np.stack([vectors[w].mean(axis=0) for w in words])
      )
    return found

  def sequences(self, params: Tree, texts: Sequence[TokenizedText]) -> np.ndarray:
    """Returns the vector of each text [texts, D]."""
    found: list[np.ndarray] = [np.zeros(0)] * len(texts)
    for i, vectors in self.vectors(params, texts):
      found[i] = {"first": vectors[0], "last": vectors[-1]}.get(self.pooling, vectors.mean(axis=0))
    return self._scaled(np.stack(found))

  def _scaled(self, x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12) if self.normalize else x

  def rows(self, texts: list[TokenizedText], width: int) -> Batch:
    """Returns what the task's forward pass reads, a row a text."""
    shape = (len(texts), width)
    batch = {key: np.zeros(shape, np.int32) for key in ("inputs", "positions", "segments", "token_types")}
    spec = self.task.spec(*shape)
    if "characters" in spec:
      batch["characters"] = np.zeros(spec["characters"].shape, np.int32)
    for row, text in enumerate(texts):
      here = slice(0, len(text.tokens))
      if "characters" in spec:
        batch["characters"][row, here] = [spell(word, spec["characters"].shape[2]) for word in text.tokens]
      else:
        batch["inputs"][row, here] = text.tokens
      batch["token_types"][row, here] = text.types
      batch["positions"][row, here] = np.arange(here.stop)
      batch["segments"][row, here] = 1
    return {key: jnp.asarray(value) for key, value in batch.items() if key in spec}

  @functools.partial(jax.jit, static_argnums=0)
  def _forward(self, params: Tree, batch: Batch) -> jax.Array:
    if not self.layer:
      return self.task.forward(params, batch).hidden.astype(jnp.float32)
    layers = self.task.forward(params, batch, taps=("hidden",)).taps["hidden"]
    if self.layer > len(layers):
      raise UserError(f"embed: layer {self.layer} of {len(layers)}")
    return layers[self.layer - 1].astype(jnp.float32)


def _pieces(tokenizer: Tokenizer, text: str) -> tuple[list[slice], list[int]]:
  """Returns where the pieces of each word (as spaces separate them) are, and all pieces."""
  words, pieces, places = text.split(), [], []
  spaced = not isinstance(tokenizer, WordPiece) and (isinstance(tokenizer, BPE) or hasattr(tokenizer, "alphabet"))
  for i, word in enumerate(words):
    ids = tokenizer.encode(" " + word if i and spaced else word)
    places.append(slice(len(pieces), len(pieces) + len(ids)))
    pieces += ids
  if pieces != list(tokenizer.encode(" ".join(words))):
    raise UserError("embed: this tokenizer cuts across words, so pieces have no word of their own")
  return places, pieces


def chunks(lines: Iterable[str], size: int) -> Iterator[list[str]]:
  """Yields lists of up to `size` lines."""
  waiting: list[str] = []
  for line in lines:
    waiting.append(line)
    if len(waiting) == size:
      yield waiting
      waiting = []
  if waiting:
    yield waiting
