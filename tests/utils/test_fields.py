"""Values of JSON objects: the right type in the right range, or an error that names key and file."""

import math

import pytest

from lmjax.utils.errors import UserError
from lmjax.utils.fields import Fields

VALUES = [True, -1, 0, 3, 10**30, 2.5, -0.5, math.inf, math.nan, "x", "relu", [1, 2], ["a"], [True], {"a": 1}]


def test_defaults():
  fields = Fields({"null": None}, "f.json")
  assert (
    fields.integer("null", 4) == 4 and fields.number("missing", 0.5) == 0.5 and fields.text("missing", None) is None
  )
  for take in (fields.integer, fields.number, fields.boolean, fields.text, fields.section):
    with pytest.raises(UserError, match="f.json: null is missing"):
      take("null")


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_types_and_ranges(value):
  fields = Fields({"key": value}, "f.json")
  number = isinstance(value, int | float) and not isinstance(value, bool)
  right = {
    "integer": number and isinstance(value, int) and 0 <= value < 2**31,
    "number": number and math.isfinite(value) and value >= -0.5,
    "boolean": isinstance(value, bool),
    "text": value in ("relu", "gelu") if isinstance(value, str) else False,
    "sequence": isinstance(value, list) and all(type(item) is int for item in value),
    "section": isinstance(value, dict),
  }
  options = {"number": {"least": -0.5}, "text": {"choices": ("relu", "gelu")}, "sequence": {"kind": int}}
  for name, fits in right.items():
    take = lambda name=name: getattr(fields, name)("key", **options.get(name, {}))  # noqa: E731
    if fits:
      taken = take()
      assert (taken.values if name == "section" else taken) == (float(value) if name == "number" else value)
    else:
      with pytest.raises(UserError, match="^f.json: key "):
        take()


def test_what_nobody_took_is_known():
  fields = Fields({"a": 1, "b": {"c": 2, "d": 3}}, "f.json")
  inner = fields.section("b")
  assert fields.unused() == ["a"] and inner.integer("d") == 3 and inner.unused() == ["c"]
  with pytest.raises(UserError, match="b.c must be a string, not 2"):
    inner.text("c")
