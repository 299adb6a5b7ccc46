"""Byte-level byte-pair encoding with the `tokenizers` library."""

from collections.abc import Iterable, Sequence

import tokenizers
from etils import epath

from lmjax.data.tokenizers.base import Tokenizer, write_file
from lmjax.utils import files
from lmjax.utils.errors import UserError

END = "<|endoftext|>"
LARGEST_ID = 2**24


class BPE:
  """Byte-level byte-pair encoding (Sennrich et al., 2016; Radford et al., 2019); `fast` is the library's own object."""

  def __init__(self, tokenizer: tokenizers.Tokenizer):
    tokenizer.encode_special_tokens = True
    tokenizer.no_padding()
    tokenizer.no_truncation()
    self.fast = tokenizer
    self.size = max(tokenizer.get_vocab().values()) + 1
    ends = self._known_ids(END, "<|end_of_text|>", "</s>", "</S>", "[SEP]", "<s>")
    if not ends:
      tokenizer.add_special_tokens([END])
      self.size += 1
      ends = self._known_ids(END)
    self.end = ends[0]
    starts = self._known_ids("<|begin_of_text|>", "<s>", "<S>", "[CLS]")
    self.start = starts[0] if starts else self.end

  def _known_ids(self, *names: str) -> list[int]:
    """Returns the ids of the tokens that the vocabulary contains."""
    return [i for i in map(self.fast.token_to_id, names) if i is not None]

  def encode(self, text: str) -> list[int]:
    return self.encode_many([text])[0]

  def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
    return [encoding.ids for encoding in self.fast.encode_batch_fast(texts, add_special_tokens=False)]

  def decode(self, ids: Iterable[int]) -> str:
    return self.fast.decode([int(i) for i in ids if i < self.size], skip_special_tokens=True)

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


def load_merges(vocabulary: epath.Path, merges: epath.Path) -> BPE:
  """Returns the tokenizer of a vocabulary, a JSON file, and of merges, a file with two tokens in each line.

  Raises:
    UserError: an id is none, or given twice, or a line of the merges is malformed.
  """
  ids = files.read_json(vocabulary)
  if not all(type(i) is int and 0 <= i < LARGEST_ID for i in ids.values()) or len(set(ids.values())) < len(ids):
    raise UserError(f"{vocabulary} must give each token an id of its own, a whole number below {LARGEST_ID:,}")
  lines = files.read_text(merges).split("\n")
  pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
  if any(len(pair) != 2 for pair in pairs):
    malformed = next(" ".join(pair) for pair in pairs if len(pair) != 2)
    raise UserError(f"tokenizer: the merge {malformed!r} is not two tokens separated by a space")
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(ids, pairs))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  tokenizer.add_special_tokens([END])
  return BPE(tokenizer)
