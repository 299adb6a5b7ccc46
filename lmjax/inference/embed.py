"""Embeddings of tokens, words, sequences and pairs of sequences, from a model of any family."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from lmjax.data.batch import Batch
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.data.tokenizers.bpe import BPE
from lmjax.data.tokenizers.spelling import spell
from lmjax.data.tokenizers.subword import WordPiece
from lmjax.data.tokenizers.words import Words
from lmjax.storage.base import LoadedModel
from lmjax.storage.huggingface.sentence import read_pooling
from lmjax.tasks.base import Task
from lmjax.tasks.encode import Encode
from lmjax.utils.errors import UserError
from lmjax.utils.pytree import Tree

POOLINGS = ("first", "mean", "last")
STEP = 16  # sequences are padded to a multiple of this length, so that few shapes are compiled


@dataclasses.dataclass(frozen=True)
class TokenizedText:
  """A sequence, or a pair of sequences, as the input of a model."""

  tokens: list  # ids; for a model that reads characters, the words themselves
  token_types: list[int]  # 0 for the first sequence, 1 for the second of a pair
  content: slice  # the tokens of the first sequence, without special tokens
  words: list[slice] | None = None  # the tokens of each word


@dataclasses.dataclass(frozen=True)
class Embedder:
  """Embeds text with the model of a trained task.

  length: maximum tokens of a sequence. pooling: the vector of a sequence is that of its `first` token ([CLS]), of its
  `last` one, or the `mean` over all. layer: the layer whose vectors are used, counted from 1; 0 is the model's output.
  ELMo's layer 1 is its character CNN. normalize: scale vectors to length 1. batch: sequences computed together.
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
      raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, not {self.pooling!r}")
    if self.layer < 0 or self.batch < 1:
      raise ValueError("layer must be at least 0, and batch at least 1")

  def encode_text(self, text: str, other: str | None = None, by_word: bool = False) -> TokenizedText:
    """Returns a sequence, or a pair of them, as the input of the model, truncated to `length` tokens.

    Args:
      other: the second sequence of a pair.
      by_word: also return the tokens of each word; words are separated by spaces.

    Raises:
      UserError: `by_word` is set and the tokenizer has tokens that span several words.
    """
    by_characters = self.task.model.kind == "bidirectional_lm"
    if by_characters:
      assert isinstance(self.tokenizer, Words)  # the only one that a bidirectional LM can have
      tokens = self.tokenizer.words(text.strip()) if not by_word else text.split()
      start, separator, end = (self.tokenizer.vocabulary[i] for i in (0, 1, 1))
      second = [] if other is None else self.tokenizer.words(other.strip())
      words = [slice(i, i + 1) for i in range(len(tokens))]
    else:
      words, tokens = _encode_words(self.tokenizer, text) if by_word else (None, list(self.tokenizer.encode(text)))
      start, separator, end = self.tokenizer.start, self.tokenizer.end, self.tokenizer.end
      second = [] if other is None else list(self.tokenizer.encode(other))
    separated = by_characters or isinstance(self.tokenizer, WordPiece) or other is not None
    max_tokens = self.length - 1 - (1 if separated else 0) - (1 if other is not None else 0)
    while len(tokens) + len(second) > max_tokens:
      (tokens if len(tokens) > len(second) else second).pop()
    inputs = [start, *tokens, *([separator] if separated else [])]
    token_types = [0] * len(inputs)
    if other is not None:
      inputs += [*second, end]
      token_types += [1] * (len(inputs) - len(token_types))
    if words is not None:
      words = [slice(w.start + 1, w.stop + 1) for w in words if w.stop <= len(tokens)]
    return TokenizedText(inputs, token_types, slice(1, 1 + len(tokens)), words if by_word else None)

  def vectors(self, params: Tree, texts: Sequence[TokenizedText]) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (index, vectors of all its tokens [L, D]) for each sequence, from the shortest to the longest."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i].tokens))
    for start in range(0, len(order), self.batch):
      group = order[start : start + self.batch]
      longest = max(len(texts[i].tokens) for i in group)
      width = min(-(-longest // STEP) * STEP, max(self.length, longest))
      missing = self.batch - len(group)  # with the same number of rows everywhere, each width is compiled once
      batch = self.rows([texts[i] for i in group] + [texts[group[0]]] * missing, width)
      hidden_BxLxD = np.asarray(self._forward(params, batch))
      for row, i in enumerate(group):
        yield i, hidden_BxLxD[row, : len(texts[i].tokens)]

  def tokens(self, params: Tree, texts: Sequence[TokenizedText]) -> list[np.ndarray]:
    """Returns the vectors of each sequence's tokens [tokens, D], or of its words, each the mean over its tokens."""
    outputs: list[np.ndarray] = [np.zeros(0)] * len(texts)
    for i, vectors in self.vectors(params, texts):
      words = texts[i].words
      vectors = vectors[texts[i].content] if words is None else np.stack([vectors[w].mean(axis=0) for w in words])
      outputs[i] = self._normalize(vectors)
    return outputs

  def sequences(self, params: Tree, texts: Sequence[TokenizedText]) -> np.ndarray:
    """Returns the vector of each sequence [sequences, D]."""
    outputs: list[np.ndarray] = [np.zeros(0)] * len(texts)
    for i, vectors in self.vectors(params, texts):
      outputs[i] = {"first": vectors[0], "last": vectors[-1]}.get(self.pooling, vectors.mean(axis=0))
    return self._normalize(np.stack(outputs))

  def _normalize(self, x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12) if self.normalize else x

  def rows(self, texts: list[TokenizedText], width: int) -> Batch:
    """Returns a batch for the task, with a row of `width` tokens for each sequence."""
    shape = (len(texts), width)
    batch = {key: np.zeros(shape, np.int32) for key in ("inputs", "positions", "segments", "token_types")}
    spec = self.task.spec(*shape)
    if "characters" in spec:
      batch["characters"] = np.zeros(spec["characters"].shape, np.int32)
    for row, text in enumerate(texts):
      columns = slice(0, len(text.tokens))
      if "characters" in spec:
        batch["characters"][row, columns] = [spell(word, spec["characters"].shape[2]) for word in text.tokens]
      else:
        batch["inputs"][row, columns] = text.tokens
      batch["token_types"][row, columns] = text.token_types
      batch["positions"][row, columns] = np.arange(columns.stop)
      batch["segments"][row, columns] = 1
    return {key: jnp.asarray(value) for key, value in batch.items() if key in spec}

  @functools.partial(jax.jit, static_argnums=0)
  def _forward(self, params: Tree, batch: Batch) -> jax.Array:
    if not self.layer:
      return self.task.forward(params, batch).hidden.astype(jnp.float32)
    layers = self.task.forward(params, batch, taps=("hidden",)).taps["hidden"]
    if self.layer > len(layers):
      raise UserError(f"embed: layer {self.layer} does not exist; the model has layers 1 to {len(layers)}")
    return layers[self.layer - 1].astype(jnp.float32)


def _encode_words(tokenizer: Tokenizer, text: str) -> tuple[list[slice], list[int]]:
  """Returns the slice of tokens of each word, and all tokens; words are separated by spaces."""
  words, tokens, slices = text.split(), [], []
  spaced = not isinstance(tokenizer, WordPiece) and (isinstance(tokenizer, BPE) or hasattr(tokenizer, "alphabet"))
  for i, word in enumerate(words):
    ids = tokenizer.encode(" " + word if i and spaced else word)
    slices.append(slice(len(tokens), len(tokens) + len(ids)))
    tokens += ids
  if tokens != list(tokenizer.encode(" ".join(words))):
    raise UserError("embed: tokens of this tokenizer span several words, so words have no vectors; leave out --words")
  return slices, tokens


def chunks(lines: Iterable[str], size: int) -> Iterator[list[str]]:
  """Yields lists of up to `size` lines."""
  chunk: list[str] = []
  for line in lines:
    chunk.append(line)
    if len(chunk) == size:
      yield chunk
      chunk = []
  if chunk:
    yield chunk


def make_embedder(
  loaded: LoadedModel, path: epath.PathLike, pooling: str | None, layer: int, normalize: bool, batch: int
) -> Embedder:
  """Returns the embedder of a loaded model.

  By default, its pooling is that of the sentence-transformers folder, or else the first token for a model with a pooler
  (BERT) and the mean for others.

  Raises:
    UserError: an option is out of range.
  """
  folder, task = read_pooling(path), loaded.task
  if task.model.kind == "encoder_decoder":  # the encoder's vectors: a decoder has none before it has begun a target
    task = Encode(type(task.model)(dataclasses.replace(task.model.config, decoder_depth=0)))
  default = "first" if getattr(loaded.task.model.config, "pooler", False) else "mean"
  try:
    return Embedder(
      task, loaded.tokenizer, loaded.length, pooling or folder.get("pooling", default), layer,
      normalize or folder.get("normalize", False), batch,
    )  # fmt: skip
  except ValueError as error:
    raise UserError(f"embed: {error}") from error
