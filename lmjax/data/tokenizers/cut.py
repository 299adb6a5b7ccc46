"""Smaller tokenizers: without the tokens that some texts do not need."""

import json
import re
import tempfile
from collections.abc import Iterable
from typing import Any

from lmjax.data.tokenizers import registry
from lmjax.data.tokenizers.base import Tokenizer, write_file
from lmjax.data.tokenizers.bpe import BPE
from lmjax.data.tokenizers.characters import Characters
from lmjax.utils import files
from lmjax.utils.errors import UserError

BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # a token that stands for a byte of what has no other token


def cut(tokenizer: Tokenizer, texts: Iterable[str]) -> tuple[Tokenizer, list[int]]:
  """Returns a tokenizer with only the tokens that texts need, and its ids' old ids, in order.

  Special tokens stay, and so do single characters and bytes, by which other texts can be read. The texts are encoded as
  before: of byte-pair encoding, the tokens by whose merges the used ones are made stay, too.

  Raises:
    UserError: the tokenizer is of a kind that cannot be cut.
  """
  if isinstance(tokenizer, Characters):
    used = set().union(*texts)
    kept = [i for i, character in enumerate(tokenizer.alphabet) if character in used]
    return Characters("".join(tokenizer.alphabet[i] for i in kept)), [*kept, tokenizer.start, tokenizer.start + 1]
  if not isinstance(tokenizer, BPE):
    raise UserError(
      f"compress: a tokenizer of the kind {type(tokenizer).__name__} cannot be cut; leave out --vocabulary"
    )
  with tempfile.TemporaryDirectory() as folder:
    tokenizer.save(files.expand(folder))
    path = files.expand(folder) / "tokenizer.json"
    if not path.exists():
      raise UserError("compress: the tokenizer has no tokenizer.json, so it cannot be cut; leave out --vocabulary")
    data = files.read_json(path)
    kept = _kept(tokenizer, data, {i for text in texts for i in tokenizer.encode(text)})
    new = {old: number for number, old in enumerate(kept)}
    _cut_json(data, new)
    write_file(folder, "tokenizer.json", json.dumps(data, ensure_ascii=False))
    config = files.expand(folder) / "generation_config.json"
    if config.exists():
      settings = files.read_json(config)
      ids = {key: _renumbered(value, new) for key, value in settings.items() if key.endswith("_id")}
      write_file(folder, "generation_config.json", json.dumps(settings | ids))
    return registry.load(files.expand(folder)), kept


def _kept(tokenizer: BPE, data: dict[str, Any], used: set[int]) -> list[int]:
  """Returns the ids that stay, in order."""
  model, names = data["model"], {i: token for token, i in tokenizer.fast.get_vocab().items()}
  if model.get("type") not in ("BPE", "WordPiece", "Unigram", "WordLevel"):
    raise UserError(f"compress: a tokenizer of the kind {model.get('type')} cannot be cut; leave out --vocabulary")
  prefix = model.get("continuing_subword_prefix") or ""
  if model["type"] == "BPE" and (prefix or model.get("end_of_word_suffix")):
    raise UserError("compress: byte-pair encoding that marks parts of words cannot be cut; leave out --vocabulary")
  always = {token["id"] for token in data["added_tokens"]} | tokenizer.special | {*tokenizer.roles.values()}
  always |= {i for i in (tokenizer.start, *tokenizer.ends) if i is not None}
  always |= {i for i, name in names.items() if len(name.removeprefix(prefix)) == 1 or BYTE.fullmatch(name)}
  unknown = model.get("unk_token")
  always |= {i for i, name in names.items() if name == unknown}
  always |= {model["unk_id"]} if model.get("unk_id") is not None else set()
  kept = always | used
  if model["type"] == "BPE":
    ranks = {pair: rank for rank, pair in enumerate(map(_pair, model["merges"]))}
    ids = {name: i for i, name in names.items()}
    kept |= {ids[part] for i in used for part in _parts(names[i], ranks) if part in ids}
  return sorted(kept)


def _pair(merge: str | list[str]) -> tuple[str, str]:
  left, right = merge.split(" ") if isinstance(merge, str) else merge
  return left, right


def _parts(token: str, ranks: dict[tuple[str, str], int]) -> set[str]:
  """Returns what the merges make on the way to a token."""
  symbols, made = list(token), set()
  while len(symbols) > 1:
    pairs = list(zip(symbols, symbols[1:], strict=False))
    best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
    if best not in ranks:
      break
    merged, i = [], 0
    while i < len(symbols):
      joined = i + 1 < len(symbols) and (symbols[i], symbols[i + 1]) == best
      merged.append("".join(best) if joined else symbols[i])
      i += 1 + joined
    symbols = merged
    made.add("".join(best))
  return made


def _cut_json(data: dict[str, Any], new: dict[int, int]) -> None:
  """Removes tokens from a tokenizer.json, and gives the others their new ids."""
  model = data["model"]
  if isinstance(model["vocab"], list):
    model["vocab"] = [entry for i, entry in enumerate(model["vocab"]) if i in new]
  else:
    model["vocab"] = {token: new[i] for token, i in model["vocab"].items() if i in new}
  if model.get("unk_id") is not None:
    model["unk_id"] = new[model["unk_id"]]
  if "merges" in model:
    there = model["vocab"]
    model["merges"] = [m for m in model["merges"] if {*_pair(m), "".join(_pair(m))} <= there.keys()]
  data["added_tokens"] = [token | {"id": new[token["id"]]} for token in data["added_tokens"]]
  data["padding"] = None
  _renumber_template(data.get("post_processor"), new)


def _renumber_template(value: Any, new: dict[int, int]) -> None:
  """Renumbers the special tokens that surround text, in place."""
  if isinstance(value, list):
    for item in value:
      _renumber_template(item, new)
  elif isinstance(value, dict):
    for key, item in value.items():
      if key == "ids":
        value[key] = _renumbered(item, new)
      elif key in ("sep", "cls"):
        value[key] = [item[0], new[item[1]]]
      else:
        _renumber_template(item, new)


def _renumbered(value: Any, new: dict[int, int]) -> Any:
  if isinstance(value, list):
    return [new[item] for item in value]
  return value if value is None else new[value]
