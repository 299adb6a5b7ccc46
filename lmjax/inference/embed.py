"""Embeddings of tokens, words, sequences and pairs of sequences, from a model of any family."""

import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from tokenizers.normalizers import Lowercase

from lmjax.data.batch import Batch
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.data.tokenizers.bpe import BPE
from lmjax.data.tokenizers.special import Template, encode, template_of
from lmjax.data.tokenizers.spelling import spell
from lmjax.data.tokenizers.subword import WordPiece
from lmjax.data.tokenizers.words import Words
from lmjax.storage.base import LoadedModel
from lmjax.storage.huggingface.sentence import Sentence, normalize, read_sentence
from lmjax.tasks.base import Task
from lmjax.tasks.encode import Encode
from lmjax.utils.errors import UserError, did_you_mean
from lmjax.utils.pytree import Tree

POOLINGS = ("first", "max", "mean", "mean_sqrt_length", "weighted_mean", "last")
LOWERCASE = Lowercase()
STEP = 16  # lengths are padded to a multiple of it, so that few shapes are compiled


@dataclasses.dataclass(frozen=True)
class TokenizedText:
  """A sequence, or a pair of sequences, as the input of a model."""

  tokens: list  # ids; for a model that reads characters, the words themselves
  token_types: list[int]  # 0 for the first sequence, 1 for the second of a pair
  content: slice  # the tokens of the first sequence, without special tokens
  words: list[slice] | None = None  # the tokens of each word
  prompt: int = 0  # the number of tokens at the start that are not pooled


@dataclasses.dataclass(frozen=True)
class Embedder:
  """Embeds text with the model of a trained task.

  pooling: the vector of a sequence is that of its `first` token ([CLS]), of its `last`, the `mean` or `max` over all,
  their sum over the square root of their number (`mean_sqrt_length`), or their mean with the weights 1, 2, ...
  (`weighted_mean`); several are concatenated. An encoder-decoder gives the vectors of its encoder.
  layer: the layer whose vectors are taken, from 1; 0 is the model's output. ELMo's layer 1 is its character CNN.
  normalize: scale vectors to length 1. batch: sequences computed together. sentence: what a sentence-transformers
  folder says besides; its modules take the pooled vectors. prompt: precedes every sequence. parse_special: read special
  tokens in texts as what they are instead of as text.
  """

  task: Task
  tokenizer: Tokenizer
  length: int
  pooling: str | tuple[str, ...] = "mean"
  layer: int = 0
  normalize: bool = False
  batch: int = 32
  sentence: Sentence | None = dataclasses.field(default=None, hash=False)
  prompt: str = ""
  parse_special: bool = False

  def __post_init__(self):
    for pooling in self.poolings:
      if pooling not in POOLINGS:
        raise ValueError(f"pooling is one of {', '.join(POOLINGS)}, not {pooling!r}")
    if self.layer < 0 or self.batch < 1:
      raise ValueError("layer must be at least 0, and batch at least 1")

  @property
  def poolings(self) -> tuple[str, ...]:
    return (self.pooling,) if isinstance(self.pooling, str) else self.pooling

  def encode_text(self, text: str, other: str | None = None, by_word: bool = False) -> TokenizedText:
    """Returns a sequence, or a pair of them, as the input of the model, truncated to `length` tokens.

    Args:
      other: the second sequence of a pair.
      by_word: also return the tokens of each word; words are separated by spaces.

    Raises:
      UserError: `by_word` is set and the tokenizer has tokens that span several words.
    """
    if self.task.model.kind == "bidirectional_lm":
      return self._encode_characters(text, other, by_word)
    template, prompt = template_of(self.tokenizer, self.task.model.kind), 0
    words: list[slice] | None = None
    if by_word:
      words, tokens = _encode_words(self.tokenizer, text)
    else:
      tokens = self._ids(self.prompt + text if other is None else text)
      prompt = self._prompt_length(template) if other is None else 0
    second = [] if other is None else self._ids(other)
    self._truncate(tokens, second, template.added(other is not None))
    whole = template.apply(tokens, None if other is None else second)
    if not whole.ids:
      if self.tokenizer.start is None:
        raise UserError(f"embed: {text!r} has no tokens")
      whole = dataclasses.replace(whole, ids=[self.tokenizer.start], token_types=[0])
    if words is not None:
      start = whole.content.start
      words = [slice(w.start + start, w.stop + start) for w in words if w.stop <= len(tokens)]
    return TokenizedText(whole.ids, whole.token_types, whole.content, words, prompt)

  def _encode_characters(self, text: str, other: str | None, by_word: bool) -> TokenizedText:
    """Returns the words of a sequence, or of a pair, between `<S>` and `</S>`, for a model that reads characters."""
    assert isinstance(self.tokenizer, Words)  # the only one that a bidirectional LM can have
    tokens = text.split() if by_word else self.tokenizer.words(text.strip())
    second = [] if other is None else self.tokenizer.words(other.strip())
    start, end = self.tokenizer.vocabulary[:2]
    self._truncate(tokens, second, 2 if other is None else 3)
    first = [start, *tokens, end]
    types = [0] * len(first) + [1] * (0 if other is None else len(second) + 1)
    words = [slice(i + 1, i + 2) for i in range(len(tokens))] if by_word else None
    return TokenizedText([*first, *([] if other is None else [*second, end])], types, slice(1, 1 + len(tokens)), words)

  def _ids(self, text: str) -> list[int]:
    if self.sentence and self.sentence.lowercase:
      names = map(self.tokenizer.fast.id_to_token, self.tokenizer.special) if isinstance(self.tokenizer, BPE) else ()
      pattern = "|".join(map(re.escape, filter(None, names))) if self.parse_special else ""
      parts = re.split(f"({pattern})", text) if pattern else [text]  # special tokens are at odd places
      text = "".join(part if i % 2 else LOWERCASE.normalize_str(part) for i, part in enumerate(parts))
    return encode(self.tokenizer, text, self.parse_special)

  def _prompt_length(self, template: Template) -> int:
    """Returns how many tokens at the start of an input belong to a prompt that is not pooled."""
    if not self.prompt or not self.sentence or self.sentence.include_prompt:
      return 0
    ends = template.single[-1][0] >= 0  # a special token at the end, which a sequence after the prompt moves
    return len(template.apply(self._ids(self.prompt)).ids) - int(ends)

  def _truncate(self, first: list, second: list, added: int) -> None:
    """Removes tokens from the end of the longer sequence until the model can take both."""
    while len(first) + len(second) > max(self.length - added, 0):
      (first if len(first) > len(second) else second).pop()

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
      outputs[i] = np.concatenate([_pool(vectors, pooling, texts[i].prompt) for pooling in self.poolings])
    x = np.stack(outputs)
    for module in self.sentence.modules if self.sentence else ():
      x = module(x)
    return self._normalize(x)

  def _normalize(self, x: np.ndarray) -> np.ndarray:
    return normalize(x) if self.normalize else x

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


def _pool(vectors_LxD: np.ndarray, pooling: str, prompt: int) -> np.ndarray:
  """Returns the vector [D] of a sequence, of the tokens after those of the prompt."""
  x_TxD = vectors_LxD[prompt:]
  if not len(x_TxD):
    return vectors_LxD[0] if pooling == "first" else np.zeros_like(vectors_LxD[0])
  if pooling in ("first", "last"):
    return x_TxD[0 if pooling == "first" else -1]
  if pooling == "max":
    return x_TxD.max(axis=0)
  if pooling == "weighted_mean":
    weights_T = np.arange(prompt + 1, len(vectors_LxD) + 1, dtype=np.float32)
    return weights_T @ x_TxD / weights_T.sum()
  return x_TxD.mean(axis=0) * (1 if pooling == "mean" else np.float32(len(x_TxD)) ** 0.5)


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
  loaded: LoadedModel, path: epath.PathLike, pooling: str | None, layer: int, normalize: bool, batch: int,
  prompt: str | None = None, prompt_name: str | None = None, parse_special: bool = False,
) -> Embedder:  # fmt: skip
  """Returns the embedder of a loaded model; by default it pools as its folder says, else by [CLS] in BERT or the mean.

  Args:
    prompt: precedes every sequence. prompt_name: takes it from a sentence-transformers folder; default the folder's.

  Raises:
    UserError: an option is out of range, or the folder has no such prompt or is not supported.
  """
  sentence = read_sentence(path)
  prompts = sentence.prompts if sentence else {}
  if prompt_name is not None and prompt_name not in prompts:
    raise UserError(f"embed: {path} has no prompt {prompt_name!r}{did_you_mean(prompt_name, prompts)}")
  name = prompt_name if prompt_name is not None or sentence is None else sentence.prompt
  default: tuple[str, ...] = ("first" if getattr(loaded.task.model.config, "pooler", False) else "mean",)
  length = loaded.length
  if sentence:
    unlimited = getattr(loaded.task.model.config, "positions", "") == "relative"
    length = sentence.length or length if unlimited else min(sentence.length or length, length)
  task = loaded.task
  if task.model.kind == "encoder_decoder":  # the encoder's vectors: a decoder has none before it has begun a target
    task = Encode(type(task.model)(dataclasses.replace(task.model.config, decoder_depth=0)))
  try:
    return Embedder(
      task, loaded.tokenizer, length, pooling or (sentence.poolings if sentence else default), layer, normalize,
      batch, sentence, prompts.get(name or "", "") if prompt is None else prompt, parse_special,
    )  # fmt: skip
  except ValueError as error:
    raise UserError(f"embed: {error}") from error
