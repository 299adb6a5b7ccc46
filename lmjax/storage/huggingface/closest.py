"""Which supported family an unknown architecture resembles, by its config.json, not by how its name is spelled."""

import re
from collections.abc import Iterable
from typing import Any

from lmjax.storage.huggingface.families import FAMILIES, Family
from lmjax.storage.huggingface.families.base import ACTIVATIONS, IRRELEVANT
from lmjax.utils.fields import Fields

NOUNS = {"decoder": "a decoder", "encoder": "an encoder", "encoder_decoder": "an encoder-decoder"}
# Endings of class names that only one kind of model has.
ENDINGS = {
  "ForCausalLM": "decoder", "LMHeadModel": "decoder", "ForMaskedLM": "encoder", "ForPreTraining": "encoder",
  "ForConditionalGeneration": "encoder_decoder",
}  # fmt: skip
OTHER_INPUTS = re.compile(r"image|patch|pixel|vision|audio|speech|mel_")
SIZES = ("vocabulary", "width", "depth", "heads")
ACTIVATION_KEYS = ("hidden_act", "hidden_activation", "activation_function", "activation", "afn")


def closest(fields: Fields) -> str:
  """Returns the end of a message about an unknown architecture: the closest family of the same kind; else nothing.

  The kind follows from `architectures` and `is_encoder_decoder`. Of the families of that kind, the closest is the one
  with the most keys in common; then one with norms before attention; then the one with the fewest other keys. A model
  that reads images or sound, or whose sizes have other names than in every family, resembles none.
  """
  if any(OTHER_INPUTS.search(key) for key in fields.values):
    return ""
  kind = _kind(fields)
  families = {
    name: family for name, family in FAMILIES.items() if kind in (None, kind_of(family)) and _has_sizes(family, fields)
  }

  def rank(name: str) -> tuple[int, bool, int]:
    family = families[name]
    own, config = _keys(family)
    return common_keys(family, fields), not getattr(config, "post_norm", False), -len(own - set(fields.values))

  best = max(families, key=rank, default="")
  return f"; its config.json is closest to that of {best!r}, {NOUNS[kind_of(families[best])]}" if best else ""


def common_keys(family: Family, fields: Fields) -> int:
  """Returns how many keys of config.json a family knows; its activation, if it is the family's, counts as one more."""
  own, config = _keys(family)
  keys = {key for key, value in fields.values.items() if value is not None}
  used = next((fields.values[key] for key in ACTIVATION_KEYS if key in keys), None)
  same = isinstance(used, str) and ACTIVATIONS.get(used) == getattr(config, "activation", "")
  return len(keys & own) + same


def _keys(family: Family) -> tuple[set[str], Any]:
  """Returns the keys that a family knows and few others do, and the lmjax config of its defaults."""
  fields = Fields({}, "config.json")
  config = family.from_hf(fields)
  return (fields.taken | set(family.irrelevant.split()) | set(family.aliases)) - set(IRRELEVANT.split()), config


def _has_sizes(family: Family, fields: Fields) -> bool:
  """Returns whether config.json has the sizes of a family under its names."""
  names = {name for key in fields.values if key in fields for name in (key, family.aliases.get(key, key))}
  if not family.config_keys:  # of parts, which have sizes of their own
    return False
  return {family.config_keys.get(size, "vocab_size") for size in SIZES} <= names


def kind_of(family: Family) -> str:
  """Returns the kind of a family's models; see `models.base.Kind`."""
  model: Any = family.module(family.from_hf(Fields({}, "config.json")))
  return str(model.kind)


def _kind(fields: Fields) -> str | None:
  """Returns the kind of a model; None where config.json does not say it."""
  if fields.values.get("is_encoder_decoder") is True:
    return "encoder_decoder"
  names = fields.values.get("architectures")
  for name in names if isinstance(names, Iterable) else ():
    for ending, kind in ENDINGS.items():
      if str(name).endswith(ending):
        return kind
  return None
