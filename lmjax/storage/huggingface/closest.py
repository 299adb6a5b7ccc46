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
  that knows the most keys of config.json; the same activation counts as one more. A model that reads images or sound,
  or whose sizes have other names than in every family, resembles none.
  """
  keys = {key for key, value in fields.values.items() if value is not None} - set(IRRELEVANT.split())
  if any(OTHER_INPUTS.search(key) for key in keys):
    return ""
  kind = _kind(fields)
  points = {name: _points(family, fields, keys) for name, family in FAMILIES.items() if kind in (None, kind_of(family))}
  best = max(points, key=lambda name: points[name], default="")
  if not best or points[best][0] == 0:
    return ""
  return f"; its config.json is closest to that of {best!r}, {NOUNS[kind_of(FAMILIES[best])]}"


def _points(family: Family, fields: Fields, keys: set[str]) -> tuple[int, bool, int]:
  """Returns how close a family is, to be compared: points, whether norms come first, and minus its unused keys."""
  defaults = Fields({}, "config.json")
  config = family.from_hf(defaults)
  own = (defaults.taken | set(family.irrelevant.split()) | set(family.aliases)) - set(IRRELEVANT.split())
  names = {key: key for key in keys} | {key: name for key, name in family.aliases.items() if key in keys}
  if not {family.config_keys.get(size, "vocab_size") for size in SIZES} <= set(names.values()):
    return 0, False, 0
  used = next((fields.values[key] for key in ACTIVATION_KEYS if key in keys), None)
  same = isinstance(used, str) and ACTIVATIONS.get(used) == getattr(config, "activation", "")
  return len(keys & own) + same, not getattr(config, "post_norm", False), -len(own - keys)


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
