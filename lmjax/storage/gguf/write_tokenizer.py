"""Tokenizers as the metadata of a GGUF file."""

import json
import types
from typing import Any

import tokenizers

from lmjax.data.tokenizers.base import Tokenizer
from lmjax.storage.gguf.splits import DIGIT, GPT2, SPLITS
from lmjax.storage.gguf.tokenizer import BYTE, CONTROL, NFC, NORMAL, PREFIX, UNKNOWN, UNUSED, USER_DEFINED
from lmjax.storage.gguf.tokenizer import tokenizer_files as read_back
from lmjax.storage.huggingface.tokenizer import ADVICE, PROBE, convert
from lmjax.utils.errors import UserError
from lmjax.utils.files import parse_json

SPACE = "▁"
ROLES = {"unk": "unknown", "pad": "padding"}
KEYS = ("eos", "eot", "eom")  # where the end tokens go, in this order


def tokenizer_metadata(tokenizer: Tokenizer, size: int, adds_start: bool | None = None) -> dict[str, Any]:
  """Returns {key: value} of the metadata that describes a tokenizer.

  Args:
    size: rows of the embedding table; ids that the tokenizer does not have are written as unused.
    adds_start: whether a document starts with the start token; default what the tokenizer does itself.

  Raises:
    UserError: llama.cpp has no such tokenizer, or would give other ids.
  """
  fast = convert(tokenizer)
  spec = parse_json(fast.to_str())
  if spec["model"]["type"] != "BPE":
    raise _no_equivalent(f"it is a {spec['model']['type']} model")
  vocabulary = fast.get_vocab(with_added_tokens=True)
  if max(vocabulary.values()) >= size:
    raise UserError(f"the tokenizer has ids up to {max(vocabulary.values()):,}, and the embedding {size:,} rows")
  tokens = [f"[PAD{i}]" for i in range(size)]
  kinds = [UNUSED] * size
  for token, i in vocabulary.items():
    tokens[i], kinds[i] = token, NORMAL
  for token in spec["added_tokens"]:
    kinds[token["id"]] = CONTROL if token["special"] else USER_DEFINED
  is_sentencepiece = SPACE in json.dumps([spec["normalizer"], spec["pre_tokenizer"]], ensure_ascii=False)
  values = _sentencepiece(spec, tokens, kinds) if is_sentencepiece else _byte_level(spec)
  values |= {"tokens": tokens, "token_type": kinds} | _special(tokenizer, fast, adds_start)
  metadata = {PREFIX + key: value for key, value in values.items()}
  _check(fast, metadata)
  return metadata


def _no_equivalent(why: str) -> UserError:
  return UserError(f"the tokenizer has no equivalent in llama.cpp: {why}; {ADVICE}")


def _special(tokenizer: Tokenizer, fast: tokenizers.Tokenizer, adds_start: bool | None) -> dict[str, Any]:
  """Returns the special tokens, and which of them surround a document."""
  ends = list(getattr(tokenizer, "ends", (tokenizer.end,)))
  values: dict[str, Any] = {f"{key}_token_id": i for key, i in zip(KEYS, ends, strict=False)}
  if tokenizer.start is not None:
    values["bos_token_id"] = tokenizer.start
  roles = getattr(tokenizer, "roles", {})
  values |= {f"{key}_token_id": roles[role] for role, key in ROLES.items() if role in roles}
  around = fast.encode("").ids
  start, end = around[:1] == [tokenizer.start], around[-1:] == ends[:1]
  both_ways = ([], [tokenizer.start], ends[:1], [tokenizer.start, *ends[:1]])
  if around not in both_ways:
    raise _no_equivalent(f"it surrounds text with {[fast.id_to_token(i) for i in around]}")
  values["add_bos_token"] = start if adds_start is None else adds_start
  return values | {"add_eos_token": end and len(around) > start}


def _byte_level(spec: dict[str, Any]) -> dict[str, Any]:
  model = spec["model"]
  patterns = tuple(_patterns(spec["pre_tokenizer"]))
  for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
    if model.get(key):
      raise _no_equivalent(f"it has {key}")
  whole, merges = bool(model.get("ignore_merges")), [_merge(merge) for merge in model["merges"]]
  names = [name for name, split in SPLITS.items() if split.patterns == patterns and split.whole_words == whole]
  if not merges:  # every byte is a token, however the text is split
    names, merges = ["gpt-2"], ["<none> <none>"]
  normalizer = spec["normalizer"]
  if normalizer is not None:
    names = [name for name in names if name in NFC and normalizer["type"] == "NFC"]
    if not names:
      raise _no_equivalent(f"llama.cpp does not normalize text ({normalizer['type']})")
  if not names:
    raise _no_equivalent(f"llama.cpp has no pre-tokenizer with the patterns {list(patterns)}")
  return {"model": "gpt2", "pre": names[0], "merges": merges}


def _merge(merge: str | list[str]) -> str:
  return merge if isinstance(merge, str) else " ".join(merge)


def _patterns(step: dict[str, Any] | None) -> list[str]:
  """Returns the regular expressions by which a pre-tokenizer splits one after the other."""
  kind = step["type"] if step else ""
  if not step:
    return []
  if kind == "Sequence":
    return [pattern for part in step["pretokenizers"] for pattern in _patterns(part)]
  if kind == "Digits" and step["individual_digits"]:
    return [DIGIT]
  if kind == "ByteLevel" and not step["add_prefix_space"]:
    return [GPT2] if step["use_regex"] else []
  isolated = kind == "Split" and (step["behavior"], step["invert"]) in (("Isolated", False), ("Removed", True))
  if isolated and "Regex" in step["pattern"]:
    return [step["pattern"]["Regex"]]
  raise _no_equivalent(f"llama.cpp has no pre-tokenizer {kind} with these options")


def _sentencepiece(spec: dict[str, Any], tokens: list[str], kinds: list[int]) -> dict[str, Any]:
  """Returns a SentencePiece BPE model, whose scores put the merges in their order."""
  model = spec["model"]
  prefix = _adds_prefix(spec["normalizer"], spec["pre_tokenizer"])
  pairs = [tuple(_merge(merge).split(" ")) for merge in model["merges"]]
  known, rank = set(tokens), {}
  for i, (left, right) in enumerate(pairs):
    if rank.setdefault(left + right, i) != i and pairs[i - 1][0] + pairs[i - 1][1] != left + right:
      raise _no_equivalent(f"merges into {left + right!r} have several places in the order")
  cuts = sum(
    token[:i] in known and token[i:] in known
    for token, kind in zip(tokens, kinds, strict=True)
    if kind == NORMAL
    for i in range(1, len(token))
  )
  if cuts != len(set(pairs)):
    raise _no_equivalent(
      f"it has {len(set(pairs)):,} merges, and its tokens can be made of two others in {cuts:,} ways"
    )
  unknown = model.get("unk_token")
  values: dict[str, Any] = {"model": "llama", "pre": "default", "add_space_prefix": prefix}
  for i, token in enumerate(tokens):
    if len(token) == 6 and token.startswith("<0x") and model.get("byte_fallback"):
      kinds[i] = BYTE
    if token == unknown:
      kinds[i] = UNKNOWN
      values["unknown_token_id"] = i
  lowest = -float(len(pairs))
  scores = [
    0.0 if kind in (CONTROL, UNKNOWN, BYTE) else -float(rank.get(t, -lowest))
    for t, kind in zip(tokens, kinds, strict=True)
  ]
  return values | {"scores": scores}


def _adds_prefix(normalizer: dict[str, Any] | None, pre_tokenizer: dict[str, Any] | None) -> bool:
  """Returns whether a space goes before each string; other changes of text are refused."""
  steps = normalizer["normalizers"] if normalizer and normalizer["type"] == "Sequence" else [normalizer]
  steps = [step for step in steps if step]
  changes = [step["type"] for step in steps]
  if pre_tokenizer is None and changes in (["Prepend", "Replace"], ["Replace"]):
    replace = steps[-1]
    if (
      replace["pattern"] == {"String": " "} and replace["content"] == SPACE and steps[0].get("prepend", SPACE) == SPACE
    ):
      return "Prepend" in changes
  elif pre_tokenizer and pre_tokenizer["type"] == "Metaspace" and not steps and not pre_tokenizer.get("split", True):
    return bool(pre_tokenizer["prepend_scheme"] != "never")
  raise _no_equivalent(f"llama.cpp does not change text as {changes or (pre_tokenizer or {}).get('type')} does")


def _check(fast: tokenizers.Tokenizer, metadata: dict[str, Any]) -> None:
  """Raises UserError where what was written gives other ids."""
  source: Any = types.SimpleNamespace(
    metadata=metadata | {"general.architecture": "llama"}, path="the written tokenizer"
  )
  again = tokenizers.Tokenizer.from_str(read_back(source)["tokenizer.json"])
  for text in PROBE:
    ids = [t.encode(text, add_special_tokens=False).ids for t in (fast, again)]
    if ids[0] != ids[1]:
      raise _no_equivalent(f"{text!r} would get other ids")
