"""Byte-level byte-pair encoding with the `tokenizers` library."""

from collections.abc import Iterable, Sequence
from typing import Any

import tokenizers
from etils import epath

from lmjax.data.tokenizers.base import Tokenizer, write_file
from lmjax.utils.errors import UserError

END = "<|endoftext|>"
# Special tokens are recognised by these names where no file says them, in the order in which they are looked for.
STARTS = ("<|begin_of_text|>", "<s>", "<S>", "<bos>", "[CLS]")
ENDS = (END, "<|end_of_text|>", "</s>", "</S>", "<eos>", "[SEP]", "<s>")
SILENT = ("[PAD]", "<pad>", "[UNK]", "<unk>", "[CLS]", "[SEP]", "[MASK]", "<mask>", "<s>", "</s>", "<bos>", "<eos>")


class BPE:
  """A tokenizer of the `tokenizers` library: byte-level byte-pair encoding (Sennrich et al., 2016; Radford et al.,
  2019), or what a tokenizer.json says; `fast` is the library's own object.

  start, ends, roles: the ids of special tokens; default those with a known name. `end` is the first of the ends. A
  tokenizer without a known end gets one, unless its ends are given. template: what surrounds a string, where its folder
  says that. special: all ids of special tokens.
  """

  template: Any = None

  def __init__(
    self, tokenizer: tokenizers.Tokenizer, start: int | None = None, ends: tuple[int, ...] | None = None, **roles: int
  ):
    tokenizer.encode_special_tokens = True
    tokenizer.no_padding()
    tokenizer.no_truncation()
    self.fast = tokenizer
    if ends is None:
      if not self._known_ids(*ENDS):
        tokenizer.add_special_tokens([END])
      ends = tuple(self._known_ids(*ENDS)[:1])
      start = (*self._known_ids(*STARTS), *ends)[0]
    self.ends, self.roles = ends, roles
    self.end: Any = ends[0] if ends else None
    self.start: Any = self.end if start is None else start
    # A config may name a start or an end that is an id of the model and no token of the vocabulary.
    self.size = max(*tokenizer.get_vocab().values(), *ends, -1 if self.start is None else self.start) + 1
    self.mask = roles.get("mask")
    # Not text: the start, the ends, and tokens of other roles. Other special tokens are part of what a model answers.
    self.special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    self._silent = {self.start, *ends, *({*roles.values(), *self._known_ids(*SILENT)} & self.special)}

  def _known_ids(self, *names: str) -> list[int]:
    """Returns the ids of the tokens that the vocabulary contains."""
    return [i for i in map(self.fast.token_to_id, names) if i is not None]

  def encode(self, text: str, parse_special: bool = False) -> list[int]:
    """Returns the ids of a string, without start and end; its special tokens are text, unless they are parsed."""
    if not parse_special:
      return self.encode_many([text])[0]
    self.fast.encode_special_tokens = False
    try:
      return list(self.fast.encode(text, add_special_tokens=False).ids)
    finally:
      self.fast.encode_special_tokens = True

  def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
    return [encoding.ids for encoding in self.fast.encode_batch_fast(texts, add_special_tokens=False)]

  def decode(self, ids: Iterable[int]) -> str:
    text: str = self.fast.decode([int(i) for i in ids if i < self.size and i not in self._silent], False)
    return text

  def save(self, folder: epath.PathLike) -> None:
    write_file(folder, "tokenizer.json", self.fast.to_str())


def train_bpe(texts: Iterable[str], size: int) -> Tokenizer:
  """Returns a byte-level BPE tokenizer of `size` ids, the end token included, trained on texts.

  Raises:
    UserError: fewer ids than bytes and an end token.
  """
  if size < 257:
    raise UserError(f"tokenizer: byte-level BPE needs at least 257 ids (256 bytes and an end), not {size}")
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
  )
  tokenizer.train_from_iterator(texts, trainer)
  return BPE(tokenizer)
