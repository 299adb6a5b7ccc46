"""The tokenizer and the chat template of a GGUF file, as the files of a Hugging Face folder."""

import collections
import json
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from lmjax.storage.gguf.file import GGUF
from lmjax.storage.gguf.splits import GPT2, SPLITS, Split
from lmjax.utils.errors import UserError, did_you_mean, one_line, reason
from lmjax.utils.fields import Fields

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # tokenizer.ggml.token_type
PREFIX = "tokenizer.ggml."
ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
ENDS = ("eos", "eot", "eom")  # of a document, a turn, a message: each ends a continuation
NFC = ("qwen2", "deepseek-r1-qwen", "qwen35")  # normalized when they were trained; the file does not say it


def special_ids(gguf: GGUF) -> dict[str, Any]:
  """Returns the special tokens as config.json and generation_config.json name them, {"eos_token_id": ...}."""
  fields, count = _fields(gguf), len(gguf.metadata.get(PREFIX + "tokens", ()))
  ids = {role: fields.integer(f"{role}_token_id", None, most=count - 1) for role in (*ROLES.values(), *ENDS)}
  if fields.get("model", "") == "llama":  # what llama.cpp takes where the file is silent
    ids |= {role: default for role, default in (("bos", 1), ("eos", 2), ("unknown", 0)) if ids[role] is None}
  ends = list(dict.fromkeys(ids[role] for role in ENDS if ids[role] is not None))
  named = {"bos_token_id": ids["bos"], "eos_token_id": ends[0] if len(ends) == 1 else ends or None}
  named |= {"pad_token_id": ids["padding"]}
  return {key: value for key, value in named.items() if value is not None}


def chat_template(gguf: GGUF) -> str | None:
  """Returns the Jinja template that turns messages into a prompt; None where the file has none."""
  return Fields(gguf.metadata, gguf.path).text("tokenizer.chat_template", None)


def tokenizer_files(gguf: GGUF) -> dict[str, str]:
  """Returns the tokenizer as files of a Hugging Face folder, {name: text}; empty where the file has none.

  Raises:
    UserError: the tokenizer is of an unknown kind, or its parts contradict each other.
  """
  fields = _fields(gguf)
  kind = fields.text("model", "none")
  if kind in ("none", "no_vocab"):
    return {}
  if kind not in ("gpt2", "llama"):
    raise UserError(f"{gguf.path}: tokenizers of the kind {kind!r} are not supported, only gpt2 (BPE) and llama")
  tokens = fields.sequence("tokens", str)
  tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(tokens)]
  if len(set(tokens)) < len(tokens):
    twice = collections.Counter(tokens).most_common(1)[0][0]
    raise UserError(f"{gguf.path}: the token {one_line(twice, 60)!r} is there twice")
  types = list(map(int, _array(fields, "token_type", len(tokens), NORMAL)))
  ids = {role: fields.integer(f"{key}_token_id", None, most=len(tokens) - 1) for role, key in ROLES.items()}
  if kind == "llama":
    ids |= {role: i for role, i in (("bos", 1), ("eos", 2), ("unk", 0)) if ids[role] is None and i < len(tokens)}
  try:
    if kind == "llama":
      scores = list(map(float, _array(fields, "scores", len(tokens), 0.0)))
      fast = _sentencepiece(tokens, scores, types, ids["unk"], fields.boolean("add_space_prefix", True))
      adds_start = True
    else:
      name = fields.text("pre", "gpt-2" if gguf.metadata["general.architecture"] == "gpt2" else "default")
      if name not in SPLITS:
        raise UserError(f"{gguf.path}: the pre-tokenizer {name!r} is not supported{did_you_mean(name, SPLITS)}")
      fast = _byte_level(tokens, fields.sequence("merges", str), SPLITS[name], name in NFC)
      adds_start = SPLITS[name].adds_start
  except UserError:
    raise
  except Exception as error:  # tokenizers raises bare Exceptions
    raise UserError(f"{gguf.path}: the tokenizer is corrupt: {reason(error)}") from error
  for wanted, special in ((USER_DEFINED, False), (UNKNOWN, True), (CONTROL, True)):
    added = [token for token, kind in zip(tokens, types, strict=True) if kind == wanted]
    fast.add_tokens([AddedToken(token, special=special, normalized=False) for token in added])
  names = {role: tokens[i] for role, i in ids.items() if i is not None}
  around = {"bos": fields.boolean("add_bos_token", adds_start), "eos": fields.boolean("add_eos_token", False)}
  around = {role: wanted and role in names for role, wanted in around.items()}
  if any(around.values()):
    text = [*([names["bos"]] if around["bos"] else []), "$A", *([names["eos"]] if around["eos"] else [])]
    pair = [part.replace("$A", "$B:1") for part in text]
    special = [(names[role], ids[role]) for role, wanted in around.items() if wanted]
    fast.post_processor = processors.TemplateProcessing(single=text, pair=[*text, *pair], special_tokens=special)
  settings: dict[str, Any] = {f"{role}_token": name for role, name in names.items()}
  settings |= {f"add_{role}_token": wanted for role, wanted in around.items()}
  settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
  files = {"tokenizer.json": fast.to_str(), "tokenizer_config.json": json.dumps(settings, indent=2)}
  files["generation_config.json"] = json.dumps(special_ids(gguf), indent=2)
  template = chat_template(gguf)
  return files | ({"chat_template.jinja": template} if template else {})


def _fields(gguf: GGUF) -> Fields:
  values = {key.removeprefix(PREFIX): value for key, value in gguf.metadata.items() if key.startswith(PREFIX)}
  return Fields(values, gguf.path, PREFIX)


def _array(fields: Fields, key: str, count: int, default: Any) -> Any:
  """Returns one number per token."""
  values = fields.get(key, [default] * count)
  if isinstance(values, str | int | float) or len(values) != count or any(isinstance(v, str) for v in values):
    raise fields.wrong(key, f"a list of {count:,} numbers")
  return values


def _byte_level(tokens: list[str], merges: list[str], split: Split, nfc: bool) -> tokenizers.Tokenizer:
  vocabulary = {token: i for i, token in enumerate(tokens)}
  pairs = [(merge[:at], merge[at + 1 :]) for merge in merges if (at := merge.find(" ", 1)) > 0]
  if len(pairs) < len(merges):
    raise ValueError("a merge is not two tokens separated by a space")
  pairs = [(a, b) for a, b in pairs if a in vocabulary and b in vocabulary and a + b in vocabulary]
  fast = tokenizers.Tokenizer(models.BPE(vocabulary, pairs, ignore_merges=split.whole_words))
  fast.normalizer = normalizers.NFC() if nfc else None
  own = split.patterns[-1] == GPT2  # the pattern that ByteLevel has itself
  patterns = split.patterns[:-1] if own else split.patterns
  steps: list[Any] = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
  fast.pre_tokenizer = pre_tokenizers.Sequence(
    [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=own)]
  )
  fast.decoder = decoders.ByteLevel()
  return fast


def _sentencepiece(
  tokens: list[str], scores: list[float], types: list[int], unknown: int | None, prefix: bool
) -> tokenizers.Tokenizer:
  """Returns a SentencePiece BPE model: at each step, the pair whose token has the highest score is merged."""
  vocabulary = {token: i for i, token in enumerate(tokens)}
  merges = []
  for token, score, kind in zip(tokens, scores, types, strict=True):
    cuts = [(token[:i], token[i:]) for i in range(1, len(token))] if kind == NORMAL else []
    cuts = [cut for cut in cuts if cut[0] in vocabulary and cut[1] in vocabulary]
    merges += [(score, cut) for cut in sorted(cuts, key=lambda cut: (vocabulary[cut[0]], vocabulary[cut[1]]))]
  pairs = [cut for _, cut in sorted(merges, key=lambda scored: -scored[0])]
  fast = tokenizers.Tokenizer(
    models.BPE(
      vocabulary, pairs, unk_token=None if unknown is None else tokens[unknown], fuse_unk=True,
      byte_fallback=BYTE in types,
    )
  )  # fmt: skip
  steps: list[Any] = [normalizers.Prepend("▁")] if prefix else []
  fast.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
  strip: list[Any] = [decoders.Strip(" ", 1, 0)] if prefix else []
  fast.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
  return fast
