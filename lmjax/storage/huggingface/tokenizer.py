"""Writes every kind of tokenizer as tokenizer.json and tokenizer_config.json, which transformers reads."""

import json
from typing import Any

import tokenizers
from etils import epath
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from lmjax.data.tokenizers import spiece
from lmjax.data.tokenizers.base import Bytes, Tokenizer
from lmjax.data.tokenizers.bpe import BPE, END
from lmjax.data.tokenizers.characters import Characters
from lmjax.data.tokenizers.pretrained import bytes_as_characters
from lmjax.data.tokenizers.sentinels import Sentinels
from lmjax.data.tokenizers.special import A, B, Template, prefix
from lmjax.data.tokenizers.subword import SentencePiece
from lmjax.data.tokenizers.words import PATTERNS, Words
from lmjax.utils import files
from lmjax.utils.errors import UserError

ADVICE = "--without_tokenizer writes the model without its tokenizer"
PROBE = (
  "The quick brown fox,  it's 1234567890 times;\nnaïve façade π ≈ 3.14159 ﬁne №5 日本語 🙂 \t a<b & c_d ",
  " Two  spaces, and a last line\n\nwith one before it: CAPITALS, don't, 'quotes' -- and [brackets].",
  "",
)
ROLES = {
  "unk": ("[UNK]", "<unk>"), "pad": ("[PAD]", "<pad>"), "cls": ("[CLS]",), "sep": ("[SEP]",), "mask": ("[MASK]",),
}  # fmt: skip


def write(folder: epath.Path, tokenizer: Tokenizer, template: str | Template) -> None:
  """Writes a tokenizer so that transformers encodes with the same ids.

  Args:
    template: the special tokens around a sequence: "pair" [CLS] a [SEP] b [SEP], "source" an end after each, "start" a
      start before it, "" none; or a template itself. Where it is none, a tokenizer from a folder keeps its own.

  Raises:
    UserError: the kind of tokenizer is not known, or the written form would give other ids.
  """
  fast = convert(tokenizer)
  for text in PROBE:
    if fast.encode(text, add_special_tokens=False).ids != list(map(int, tokenizer.encode(text))):
      raise UserError(f"the tokenizer has no transformers equivalent: {text!r} would get other ids; {ADVICE}")
  special = {"bos": tokenizer.start, "eos": tokenizer.end}
  names = {role: None if number is None else fast.id_to_token(number) for role, number in special.items()}
  names |= {role: next((n for n in known if fast.token_to_id(n) is not None), None) for role, known in ROLES.items()}
  own: Template | None = template if isinstance(template, Template) else getattr(tokenizer, "template", None)
  if own is not None or (template == "start" and names["bos"]):
    fast.post_processor = _processor(own or prefix([tokenizer.start]), fast)
  elif template == "pair" and names["cls"] and names["sep"]:
    fast.post_processor = processors.BertProcessing(*((names[r], fast.token_to_id(names[r])) for r in ("sep", "cls")))
  elif template == "source":
    end = names["eos"]
    fast.post_processor = processors.TemplateProcessing(
      single=f"$A {end}", pair=f"$A {end} $B {end}", special_tokens=[(end, tokenizer.end)]
    )
  settings: dict[str, Any] = {f"{role}_token": name for role, name in names.items() if name}
  settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
  files.write(folder / "tokenizer.json", fast.to_str(pretty=True))
  files.write(folder / "tokenizer_config.json", json.dumps(settings, indent=2))
  if chat_template := getattr(tokenizer, "chat_template", None):
    files.write(folder / "chat_template.jinja", chat_template)


def _processor(template: Template, fast: tokenizers.Tokenizer) -> processors.TemplateProcessing:
  """Returns the post-processor of a template."""
  names = {number: str(fast.id_to_token(number)) for number, _ in template.pair + template.single if number >= 0}
  single, pair = (
    [f"{ {A: '$A', B: '$B'}.get(number) or names[number] }:{token_type}" for number, token_type in pieces]
    for pieces in (template.single, template.pair)
  )
  special = [(name, number) for number, name in names.items()]
  return processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)


def convert(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
  """Returns a tokenizer of the `tokenizers` library with the same ids.

  Raises:
    UserError: the kind of tokenizer is not known.
  """
  for kind, make in MAKERS.items():
    if isinstance(tokenizer, kind):
      return make(tokenizer)
  raise UserError(f"{type(tokenizer).__name__} has no transformers equivalent; {ADVICE}")


def _bytes(tokenizer: Bytes) -> tokenizers.Tokenizer:
  fast = tokenizers.Tokenizer(models.BPE({character: i for i, character in enumerate(bytes_as_characters())}, []))
  fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  fast.decoder = decoders.ByteLevel()
  return _with_special(fast, END)


def _characters(tokenizer: Characters) -> tokenizers.Tokenizer:
  unknown = "\ufffd" if "\ufffd" not in tokenizer.alphabet else "<unk>"
  vocabulary = {character: i for i, character in enumerate(tokenizer.alphabet)}
  vocabulary |= {END: tokenizer.end, unknown: tokenizer.end + 1}
  fast = tokenizers.Tokenizer(models.WordLevel(vocabulary, unknown))
  fast.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
  fast.decoder = decoders.Fuse()
  return _with_special(fast, END)


def _words(tokenizer: Words) -> tokenizers.Tokenizer:
  vocabulary = {word: i for i, word in enumerate(tokenizer.vocabulary)}
  start, end, unknown = (tokenizer.vocabulary[i] for i in (tokenizer.start, tokenizer.end, tokenizer.unknown))
  fast = tokenizers.Tokenizer(models.WordLevel(vocabulary, unknown))
  fast.normalizer = normalizers.Replace("\n", f" {end} ") if tokenizer.split_by == "spaces" else None
  fast.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(Regex(PATTERNS[tokenizer.split_by]), "isolated"),
      pre_tokenizers.Split(Regex(r"\s+"), "removed"),
    ]
  )
  return _with_special(fast, start, end)


def _sentencepiece(tokenizer: SentencePiece) -> tokenizers.Tokenizer:
  proto = spiece.parse(tokenizer.model)
  fast = tokenizers.Tokenizer(spiece.model_of(proto))
  text = proto.normalizer_spec
  charsmap = text.precompiled_charsmap
  steps: list[normalizers.Normalizer] = [normalizers.Precompiled(charsmap)] if charsmap else []
  if text.remove_extra_whitespaces:
    steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
  fast.normalizer = normalizers.Sequence(steps)
  fast.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always" if text.add_dummy_prefix else "never")
  fast.decoder = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
  )
  special = [piece.piece for piece in proto.pieces if piece.type == spiece.CONTROL]
  return _with_special(fast, *special, *([END] if tokenizer.end == len(proto.pieces) else []))


def _sentinels(tokenizer: Sentinels) -> tokenizers.Tokenizer:
  fast = convert(tokenizer.inner)
  return _with_special(fast, *(f"<extra_id_{i}>" for i in reversed(range(tokenizer.sentinels))))


def _with_special(fast: tokenizers.Tokenizer, *names: str) -> tokenizers.Tokenizer:
  fast.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
  return fast


MAKERS = {
  Sentinels: _sentinels,
  SentencePiece: _sentencepiece,
  BPE: lambda tokenizer: tokenizers.Tokenizer.from_str(tokenizer.fast.to_str()),
  Bytes: _bytes,
  Characters: _characters,
  Words: _words,
}
