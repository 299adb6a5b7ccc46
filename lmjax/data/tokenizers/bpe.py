"""Byte-level byte-pair encoding, by the `tokenizers` library."""

import json
from collections.abc import Iterable, Sequence

import tokenizers
from etils import epath

from lmjax.data.tokenizers.base import Tokenizer, write_file
from lmjax.utils.errors import UserError

END = "<|endoftext|>"


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
    write_file(folder, "tokenizer.json", self.fast.to_str())


def train_bpe(texts: Iterable[str], size: int) -> Tokenizer:
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
  )
  tokenizer.train_from_iterator(texts, trainer)
  return BPE(tokenizer)


def from_merges(vocabulary: str, merges: str) -> BPE:
  pairs = [tuple(line.split(" ")) for line in merges.split("\n") if line and not line.startswith("#version")]
  if any(len(pair) != 2 for pair in pairs):
    bad = next(" ".join(pair) for pair in pairs if len(pair) != 2)
    raise UserError(f"tokenizer: the merge {bad!r} is not two pieces with a space between them")
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(json.loads(vocabulary), pairs))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  tokenizer.add_special_tokens([END])
  return BPE(tokenizer)
