"""Tokenizers whose pieces are of words: WordPiece, as BERT has it, and SentencePiece, unigram and BPE."""

import io
import json
from collections.abc import Iterable, Sequence

import sentencepiece
import tokenizers
from etils import epath

from lmjax.data.tokenizers.bpe import BPE
from lmjax.utils.errors import UserError


class WordPiece(BPE):
  """WordPiece (Schuster and Nakajima, 2012) as BERT has it, cased or uncased; [CLS] opens a text and [SEP] ends it.

  Decoding joins pieces with spaces where words were split off, so it gives back the words and not the text.
  """

  SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

  def __init__(self, tokenizer: tokenizers.Tokenizer):
    for name in self.SPECIAL:
      if tokenizer.token_to_id(name) is None:
        raise UserError(f"tokenizer: a WordPiece vocabulary needs {name}")
    super().__init__(tokenizer)
    self.padding, self.unknown, self.start, self.end, self.mask = map(tokenizer.token_to_id, self.SPECIAL)

  def token(self, number: int) -> str:
    """Returns the piece of an id as the vocabulary writes it; `##` goes on with a word."""
    return self.fast.id_to_token(number)

  @classmethod
  def of(cls, pieces: Iterable[str], lowercase: bool) -> "WordPiece":
    """Returns the tokenizer of a vocabulary, in the order of its ids."""
    model = tokenizers.models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]")
    tokenizer = _bert(tokenizers.Tokenizer(model), lowercase)
    tokenizer.add_special_tokens([name for name in cls.SPECIAL if tokenizer.token_to_id(name) is not None])
    return cls(tokenizer)


def _bert(tokenizer: tokenizers.Tokenizer, lowercase: bool) -> tokenizers.Tokenizer:
  """Adds what stands around WordPiece in BERT: cleaning, splitting at spaces and punctuation, joining."""
  tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
  tokenizer.decoder = tokenizers.decoders.WordPiece()
  return tokenizer


class SentencePiece:
  """A SentencePiece model, unigram (Kudo, 2018) or BPE, by its own library."""

  def __init__(self, model: bytes):
    self.model = model
    self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = self._processor.get_piece_size()
    end, start = self._processor.eos_id(), self._processor.bos_id()
    self.size = pieces if end >= 0 else pieces + 1  # a model without an end gets one behind its pieces
    self.end = end if end >= 0 else pieces
    self.start = start if start >= 0 else self.end

  def encode(self, text: str) -> list[int]:
    return self._processor.encode(text)

  def encode_many(self, texts: Sequence[str]) -> list[Sequence[int]]:
    return self._processor.encode(list(texts), num_threads=1)

  def decode(self, ids: Iterable[int]) -> str:
    pieces = self._processor.get_piece_size()
    return self._processor.decode([int(i) for i in ids if i < pieces and i not in (self.start, self.end)])

  def save(self, folder: epath.PathLike) -> None:
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(self.model)

  def __reduce__(self):
    return SentencePiece, (self.model,)


def train_wordpiece(texts: Iterable[str], size: int) -> WordPiece:
  """Returns an uncased WordPiece tokenizer of `size` pieces learnt from texts."""
  tokenizer = _bert(tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]")), lowercase=True)
  trainer = tokenizers.trainers.WordPieceTrainer(
    vocab_size=size, special_tokens=list(WordPiece.SPECIAL), show_progress=False
  )
  tokenizer.train_from_iterator(texts, trainer)
  return WordPiece(tokenizer)


def train_sentencepiece(texts: Iterable[str], size: int, model: str) -> SentencePiece:
  """Returns a SentencePiece model, `unigram` or `bpe`, of up to `size` pieces learnt from texts.

  Raises:
    UserError: the texts do not give so many.
  """
  lines = (line for text in texts for line in text.splitlines() if line.strip())
  written = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=lines, model_writer=written, vocab_size=size, model_type=model, byte_fallback=True,
      character_coverage=0.9995, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
  except RuntimeError as error:
    raise UserError(f"tokenizer: SentencePiece could not learn {size} pieces: {error}") from error
  return SentencePiece(written.getvalue())


def read_vocabulary(files: dict[str, epath.Path]) -> WordPiece:
  """Returns the WordPiece tokenizer of vocab.txt; uncased if its own settings say so, or if no piece has a capital."""
  pieces = files["vocab.txt"].read_text(encoding="utf-8").splitlines()
  lowercase = not any(piece.lower() != piece for piece in pieces if not piece.startswith("["))
  if "tokenizer_config.json" in files:
    lowercase = json.loads(files["tokenizer_config.json"].read_text()).get("do_lower_case", lowercase)
  return WordPiece.of(pieces, lowercase)
