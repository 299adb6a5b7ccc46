"""Reads tokenizers as others publish them: tokenizer.json, vocab.txt, vocab.json with merges.txt, SentencePiece models.

What the files beside them say is obeyed (see settings.py). The ids are those of transformers.
"""

import functools
import json
from collections.abc import Sequence
from typing import Any

import tokenizers
from etils import epath
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from lmjax.data.tokenizers.base import write_file
from lmjax.data.tokenizers.bpe import BPE, END, ENDS, SILENT, STARTS
from lmjax.data.tokenizers.settings import OF_BERT, OF_LLAMA, OF_T5, ROLES, Settings, chat_template
from lmjax.data.tokenizers.special import Template, read_processor
from lmjax.data.tokenizers.spiece import MODELS, convert
from lmjax.data.tokenizers.subword import SentencePiece, WordPiece
from lmjax.utils.errors import UserError, reason
from lmjax.utils.files import parse_json, read_bytes, read_json, read_text

# Qwen2's words: contractions, letters, single digits, punctuation, and white space.
QWEN2 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORD_END = "</w>"  # of GPT-1's tokens
LARGEST_ID = 2**24


class _WithRoles(BPE):
  """Saves which tokens are special, where they have other names than BPE or WordPiece look for.

  chat_template: what surrounds the messages of a dialogue, where the folder says that (see `lmjax.data.chat`).
  """

  chat_template: str | None = None

  def save(self, folder: epath.PathLike) -> None:
    super().save(folder)
    if self.chat_template:
      write_file(folder, "chat_template.jinja", self.chat_template)
    names = {f"{role}_token": self.fast.id_to_token(number) for role, number in self.roles.items()}
    ids = {"bos_token_id": self.start, "eos_token_id": list(self.ends)}
    ends = tuple(self._known_ids(*ENDS)[:1])
    start = (*self._known_ids(*STARTS), *ends, None)[0]
    if ends and (start, ends) == (self.start, self.ends) and {*names.values()} <= {*SILENT, *ENDS}:
      return
    write_file(folder, "special_tokens_map.json", json.dumps(names))
    write_file(folder, "generation_config.json", json.dumps(ids))


class PretrainedWordPiece(_WithRoles, WordPiece):
  """WordPiece whose special tokens have other names than BERT's."""


class Pretrained(_WithRoles):
  """A tokenizer of the `tokenizers` library of any kind, whose special tokens no string becomes unasked."""

  def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
    rows = super().encode_many(texts)
    for i, ids in enumerate(rows):
      # A unigram model has its special tokens as pieces, a vocabulary of words has them as words. The normalizer of a
      # vocabulary of words may write one: the end for the end of a line.
      special = self._control.intersection(ids)
      if special and (self._is_unigram or any(self.fast.id_to_token(number) in texts[i] for number in special)):
        rows[i] = self._without_special.encode(texts[i], add_special_tokens=False).ids
    return rows

  @functools.cached_property
  def _control(self) -> set[int]:
    """The special tokens but for the unknown one, which other words of a string may become."""
    return self.special - {self.roles.get("unk"), *self._known_ids("[UNK]", "<unk>")}

  @functools.cached_property
  def _is_unigram(self) -> bool:
    return isinstance(self.fast.model, models.Unigram)

  @functools.cached_property
  def _without_special(self) -> tokenizers.Tokenizer:
    """The tokenizer with names for special tokens that no string has, as white space is not part of a token."""
    data = parse_json(self.fast.to_str())
    model, added = data["model"], [token for token in data["added_tokens"] if token["id"] not in self._control]
    names = {self.fast.id_to_token(i): f" \n{i}\n " for i in self._control}
    if isinstance(model["vocab"], list):
      model["vocab"] = [[names.get(token, token), score] for token, score in model["vocab"]]
    else:
      model["vocab"] = {names.get(token, token): i for token, i in model["vocab"].items()}
    if "merges" in model:
      model["merges"] = [pair for pair in model["merges"] if "".join(pair) not in names and not {*pair} & {*names}]
    return tokenizers.Tokenizer.from_str(json.dumps(data | {"added_tokens": added, "post_processor": None}))


def load_json(file: epath.Path) -> BPE:
  """Returns the tokenizer of a tokenizer.json of the `tokenizers` library."""
  fast, settings = tokenizers.Tokenizer.from_str(read_text(file)), Settings(file.parent)
  normalizer = fast.normalizer
  if settings.kind in OF_BERT and isinstance(normalizer, normalizers.BertNormalizer):
    for key, value in _bert_options(settings, normalizer.lowercase).items():
      setattr(normalizer, key, value)
    fast.normalizer = normalizer
  return _finish(fast, settings, with_end=True)


def load_vocabulary(file: epath.Path) -> BPE:
  """Returns the WordPiece tokenizer of vocab.txt.

  Uncased if the tokenizer_config.json beside it sets do_lower_case, or names BERT's class and does not set it; without
  either, unless a token has a capital.
  """
  lines, settings = read_lines(file), Settings(file.parent)
  cased = any(token.lower() != token for token in lines if not token.startswith("["))
  model = models.WordPiece({token: i for i, token in enumerate(lines)}, unk_token=settings.name("unk") or "[UNK]")
  fast = tokenizers.Tokenizer(model)
  fast.normalizer = normalizers.BertNormalizer(**_bert_options(settings, not cased))
  fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  fast.decoder = decoders.WordPiece()
  _mark_special(fast, [settings.name(role) for role in ROLES] + list(WordPiece.SPECIAL))
  return _finish(fast, settings, wordpiece=True)


def load_merges(vocabulary: epath.Path, merges: epath.Path) -> BPE:
  """Returns the tokenizer of a vocabulary, a JSON file, and of merges, a file with two tokens in each line.

  Byte-level like GPT-2's; where tokens end with `</w>`, or the files beside say so, that of GPT-1.

  Raises:
    UserError: an id is none, or given twice, or a line of the merges is malformed.
  """
  settings, lines = Settings(vocabulary.parent), read_lines(merges)
  pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
  if any(len(pair) != 2 for pair in pairs):
    malformed = next(" ".join(pair) for pair in pairs if len(pair) != 2)
    raise UserError(f"tokenizer: the merge {malformed!r} is not two tokens separated by a space")
  ids = read_json(vocabulary)
  if not all(type(i) is int and 0 <= i < LARGEST_ID for i in ids.values()) or len(set(ids.values())) < len(ids):
    raise UserError(f"{vocabulary} must give each token an id of its own, a whole number below {LARGEST_ID:,}")
  prefix = settings.tokenizer.boolean("add_prefix_space", False)
  if settings.kind == "OpenAIGPTTokenizer" or (not settings.kind and any(t.endswith(WORD_END) for t in ids)):
    unknown = settings.name("unk") or "<unk>"
    model = models.BPE(ids, pairs, unk_token=unknown, end_of_word_suffix=WORD_END)
    fast = tokenizers.Tokenizer(model)
    fast.normalizer = normalizers.BertNormalizer(lowercase=True)
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.decoder = decoders.BPEDecoder(suffix=WORD_END)
    _mark_special(fast, [unknown])
    return _finish(fast, settings)
  fast = tokenizers.Tokenizer(models.BPE(ids, pairs))
  if settings.kind == "Qwen2Tokenizer":
    fast.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(QWEN2), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False)
    fast.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
  else:
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
  if settings.kind == "GPTNeoXTokenizer":
    fast.normalizer = normalizers.NFC()
  fast.decoder = decoders.ByteLevel()
  _mark_special(fast, [END, *(settings.name(role) for role in ROLES)])
  return _finish(fast, settings)


def load_sentencepiece(file: epath.Path) -> Any:
  """Returns the tokenizer of a SentencePiece model, as the class that the files beside it name arranges its pieces."""
  settings = Settings(file.parent)
  if settings.kind not in MODELS:
    return SentencePiece(read_bytes(file))
  extra = settings.tokenizer.integer("extra_ids", 100) if settings.kind in OF_T5 else 0
  names = {role: name for role in ROLES if (name := settings.name(role))}
  legacy = settings.tokenizer.boolean("legacy", False) if settings.kind in OF_LLAMA else False
  prefix = settings.tokenizer.boolean("add_prefix_space", True)
  before = _albert_steps(settings) if settings.kind == "AlbertTokenizer" else []
  deberta = settings.kind == "DebertaV2Tokenizer"
  if deberta and settings.tokenizer.boolean("do_lower_case", False):
    before = [normalizers.Lowercase()]
  fast = convert(read_bytes(file), settings.kind, names, extra, prefix, legacy, before)
  if deberta and settings.tokenizer.boolean("split_by_punct", False):
    punctuation = pre_tokenizers.Punctuation(behavior="isolated")
    fast.pre_tokenizer = pre_tokenizers.Sequence([punctuation, fast.pre_tokenizer])
  _mark_special(fast, [*names.values(), *(f"<extra_id_{i}>" for i in range(extra))])
  return _finish(fast, settings)


def load_byt5(file: epath.Path) -> BPE:
  """Returns the tokenizer of ByT5, which has no file of its own: three special tokens, then the bytes, then sentinels.

  Args:
    file: any file of the folder whose tokenizer_config.json or config.json names the class.

  Raises:
    UserError: they name none, or another one.
  """
  settings = Settings(file.parent)
  if settings.kind != "ByT5Tokenizer":
    raise UserError(f"tokenizer: {file.parent} contains no tokenizer: only that of ByT5 has no file")
  special = [settings.name(role) or f"<{role}>" for role in ("pad", "eos", "unk")]
  vocabulary = {name: i for i, name in enumerate((*special, *bytes_as_characters()))}
  fast = tokenizers.Tokenizer(models.BPE(vocabulary, []))
  fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  fast.decoder = decoders.ByteLevel()
  fast.add_special_tokens([AddedToken(name, lstrip=True, rstrip=True, normalized=False) for name in special])
  if not any(token.content == "<extra_id_0>" for _, token in settings.added()):
    extra = range(settings.tokenizer.integer("extra_ids", 125))
    fast.add_special_tokens([AddedToken(f"<extra_id_{i}>", normalized=False) for i in extra])
  return _finish(fast, settings)


def bytes_as_characters() -> list[str]:
  """Returns GPT-2's characters for bytes, in byte order: printable bytes are themselves, the others come after 255."""
  printable, spare = {*range(33, 127), *range(161, 173), *range(174, 256)}, iter(range(256, 512))
  return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


def read_lines(file: epath.Path) -> list[str]:
  r"""Returns the lines of a file, which only \n ends, or \r\n where it ends every line."""
  lines = read_bytes(file).decode("utf-8").split("\n")
  lines = lines if lines[-1] else lines[:-1]
  return [line[:-1] for line in lines] if lines and all(line.endswith("\r") for line in lines) else lines


def read_template(folder: epath.PathLike, tokenizer: Any) -> Template | None:
  """Returns what the files of a folder put around a string: the post-processor, else the tokenizer's class.

  None for tokenizers of lmjax's own kinds, which the kind of model decides.
  """
  if not isinstance(tokenizer, BPE):
    return None
  processor = tokenizer.fast.post_processor
  try:
    processor_template = read_processor(parse_json(processor.__getstate__())) if processor is not None else None
  except (ValueError, KeyError, TypeError, IndexError) as error:
    raise UserError(f"{folder}: the post-processor of tokenizer.json is corrupt: {reason(error)}") from error
  return processor_template or Settings(folder).template(tokenizer.start, tokenizer.ends, tokenizer.fast)


def _bert_options(settings: Settings, lowercase: bool) -> dict[str, Any]:
  """Returns the options of BERT's normalizer; lowercase: where no file says it."""
  fields, named = settings.tokenizer, "tokenizer_class" in settings.tokenizer
  lowercase = fields.boolean("do_lower_case", True if named and settings.kind in OF_BERT else lowercase)
  options = {"lowercase": lowercase, "strip_accents": fields.boolean("strip_accents", None)}
  return options | {"handle_chinese_chars": fields.boolean("tokenize_chinese_chars", True)}


def _albert_steps(settings: Settings) -> list[normalizers.Normalizer]:
  """Returns what ALBERT does to a string before its SentencePiece model."""
  steps: list[normalizers.Normalizer] = [normalizers.Replace(quotes, '"') for quotes in ("``", "''")]
  if not settings.tokenizer.boolean("keep_accents", False):
    steps += [normalizers.NFKD(), normalizers.StripAccents()]
  return [*steps, normalizers.Lowercase()] if settings.tokenizer.boolean("do_lower_case", True) else steps


def _mark_special(fast: tokenizers.Tokenizer, names: list[str | None]) -> None:
  """Declares tokens of a vocabulary as special."""
  known = [name for name in dict.fromkeys(names) if name and fast.token_to_id(name) is not None]
  fast.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in known])


def _finish(fast: tokenizers.Tokenizer, settings: Settings, with_end: bool = False, wordpiece: bool = False) -> BPE:
  """Adds the tokens that the files beside a tokenizer add, and returns it with its special tokens.

  Args:
    with_end: whether a tokenizer of which nothing is known gets an end token if it has none.
    wordpiece: whether it must have all special tokens of BERT.

  Raises:
    UserError: an added token would get another id than a file says, or a special token of BERT is missing.
  """
  for number, token in settings.added():
    if fast.token_to_id(token.content) is None or token.special:
      fast.add_tokens([token])
    if number is not None and fast.token_to_id(token.content) != number:
      raise UserError(
        f"tokenizer: {settings.folder}: the added token {token.content!r} has the id {number}, but the vocabulary "
        f"gives it {fast.token_to_id(token.content)}"
      )
  special = settings.special_tokens(fast)
  complete = isinstance(fast.model, models.WordPiece) and {*WordPiece.ROLES} <= {*special.roles}
  if wordpiece or complete:
    usual = [fast.token_to_id(name) for name in WordPiece.SPECIAL] == [special.roles.get(r) for r in WordPiece.ROLES]
    return (WordPiece if usual else PretrainedWordPiece)(fast, **special.roles)
  if not settings and with_end:
    made = Pretrained(fast, **special.roles)
  else:
    made = Pretrained(fast, special.start, special.ends, **special.roles)
  made.chat_template = chat_template(settings.folder)
  return made
