"""Subword tokenizers: BERT's WordPiece, and SentencePiece (unigram and BPE)."""

import io
from collections.abc import Iterable, Sequence
from typing import Any

import sentencepiece
import tokenizers
from etils import epath

from lmjax.data.tokenizers.base import write_file
from lmjax.data.tokenizers.bpe import BPE
from lmjax.utils.errors import UserError


class WordPiece(BPE):
  """BERT's WordPiece (Schuster and Nakajima, 2012), cased or uncased; the start is [CLS] and the end [SEP].

  Decoding puts a space between all words, so it restores the words but not the text.
  """

  SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
  ROLES = ("pad", "unk", "cls", "sep", "mask")

  def __init__(self, tokenizer: tokenizers.Tokenizer, **special: Any):
    known = {role: tokenizer.token_to_id(name) for role, name in zip(self.ROLES, self.SPECIAL, strict=True)}
    known |= {role: special[role] for role in self.ROLES if role in special}
    for role, name in zip(self.ROLES, self.SPECIAL, strict=True):
      if known[role] is None:
        raise UserError(f"tokenizer: a WordPiece vocabulary needs {name}")
    super().__init__(tokenizer, known["cls"], (known["sep"],), **known)
    self.padding, self.unknown, self.mask = known["pad"], known["unk"], known["mask"]

  def token(self, number: int) -> str:
    """Returns the token of an id as in the vocabulary, empty without one; `##` continues a word."""
    return self.fast.id_to_token(number) or ""

  @classmethod
  def of(cls, tokens: Iterable[str], lowercase: bool) -> "WordPiece":
    """Returns the tokenizer of a vocabulary, in the order of its ids."""
    model = tokenizers.models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]")
    tokenizer = _bert(tokenizers.Tokenizer(model), lowercase)
    tokenizer.add_special_tokens([name for name in cls.SPECIAL if tokenizer.token_to_id(name) is not None])
    return cls(tokenizer)


def _bert(tokenizer: tokenizers.Tokenizer, lowercase: bool) -> tokenizers.Tokenizer:
  """Adds BERT's normalizer, pre-tokenizer and decoder."""
  tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
  tokenizer.decoder = tokenizers.decoders.WordPiece()
  return tokenizer


class SentencePiece:
  """A SentencePiece model, unigram (Kudo, 2018) or BPE, with the `sentencepiece` library."""

  def __init__(self, model: bytes):
    self.model = model
    if not model:  # which the library takes for no model yet, and logs an error whenever it is asked for anything
      raise UserError("tokenizer: the SentencePiece model is empty")
    self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    size = self._processor.get_piece_size()
    end, start = self._processor.eos_id(), self._processor.bos_id()
    if size < 1 or max(end, start) >= size:
      raise UserError(f"tokenizer: the SentencePiece model has {size} pieces, start {start} and end {end}")
    self.size = size if end >= 0 else size + 1  # a model without an end token gets one after its pieces
    self.end = end if end >= 0 else size
    self.start = start if start >= 0 else self.end

  def encode(self, text: str) -> list[int]:
    return self._processor.encode(text)

  def encode_many(self, texts: Sequence[str]) -> list[Sequence[int]]:
    return self._processor.encode(list(texts), num_threads=1)

  def decode(self, ids: Iterable[int]) -> str:
    size = self._processor.get_piece_size()
    return self._processor.decode([int(i) for i in ids if i < size and i not in (self.start, self.end)])

  def save(self, folder: epath.PathLike) -> None:
    write_file(folder, "tokenizer.model", self.model)

  def __reduce__(self):
    return SentencePiece, (self.model,)


def train_wordpiece(texts: Iterable[str], size: int) -> WordPiece:
  """Returns an uncased WordPiece tokenizer of `size` ids, trained on texts."""
  tokenizer = _bert(tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]")), lowercase=True)
  trainer = tokenizers.trainers.WordPieceTrainer(
    vocab_size=size, special_tokens=list(WordPiece.SPECIAL), show_progress=False
  )
  tokenizer.train_from_iterator(texts, trainer)
  return WordPiece(tokenizer)


def train_unigram(texts: Iterable[str], size: int) -> SentencePiece:
  """Returns a SentencePiece unigram model of up to `size` pieces, trained on texts.

  Raises:
    UserError: SentencePiece fails, for instance because there is too little text.
  """
  return _train_sentencepiece(texts, size, "unigram")


def train_sentencepiece_bpe(texts: Iterable[str], size: int) -> SentencePiece:
  """Returns a SentencePiece BPE model of up to `size` pieces, trained on texts.

  Raises:
    UserError: SentencePiece fails, for instance because there is too little text.
  """
  return _train_sentencepiece(texts, size, "bpe")


def _train_sentencepiece(texts: Iterable[str], size: int, model: str) -> SentencePiece:
  lines = (line for text in texts for line in text.splitlines() if line.strip())
  model_file = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=lines, model_writer=model_file, vocab_size=size, model_type=model, byte_fallback=True,
      character_coverage=0.9995, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
  except RuntimeError as error:
    raise UserError(f"tokenizer: SentencePiece cannot train {size} pieces: {error}") from error
  return SentencePiece(model_file.getvalue())
