"""Generated files: what their structure may hold is read, and all else is refused."""

import contextlib
import json
import math
import os
import struct

import numpy as np
import pytest
from etils import epath
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmjax import config, experiment, logs
from lmjax.data.sources.shards import read_index
from lmjax.data.tokenizers import registry
from lmjax.data.tokenizers.base import Bytes
from lmjax.experiment import Start
from lmjax.storage import bilm
from lmjax.storage.safetensors import DTYPES, Tensors
from lmjax.storage.sources import check_sources
from lmjax.utils import files
from lmjax.utils.errors import LONGEST, UserError, one_line
from lmjax.utils.fields import Fields

VALUES = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
  lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
  max_leaves=8,
)
KEYS = (
  "alphabet", "vocabulary", "split_by", "start", "sentinels", "version", "splits", "train", "counts", "dtype",
  "tokenizer", "made", "path", "step", "files", "lstm", "char_cnn", "filters", "weight_map", "format",
  "data", "model", "rules",
)  # fmt: skip
OBJECTS = st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), VALUES, max_size=8)


@pytest.fixture
def examples(fuzz):
  """Runs a property on generated examples, the same ones each time."""

  def run(property, **strategies):
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    options = settings(max_examples=fuzz, deadline=None, derandomize=True, database=None, suppress_health_check=checks)
    options(given(**strategies)(property))()

  return run


@st.composite
def tensors(draw):
  """Returns {name: (dtype, shape)} of a file."""
  names = draw(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9), unique=True, max_size=4)
  )
  shapes = st.lists(st.integers(0, 4), max_size=3)
  return {name: (draw(st.sampled_from(sorted(DTYPES))), draw(shapes)) for name in names if name != "__metadata__"}


def pack(header, data):
  text = json.dumps(header) if isinstance(header, dict) else header
  return struct.pack("<Q", len(text.encode())) + text.encode() + data


def described(made):
  """Returns the header of a file with these tensors, and its data."""
  header, offset = {}, 0
  for name, (dtype, shape) in made.items():
    end = offset + math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
    header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
    offset = end
  return header, bytes(i % 251 for i in range(offset))


def test_safetensors_as_the_format_says_are_read(examples, tmp_path):
  def property(made):
    header, data = described(made)
    (tmp_path / "model.safetensors").write_bytes(pack(header, data))
    read = Tensors(tmp_path)
    assert set(read) == set(made)
    for name, entry in header.items():
      start, end = entry["data_offsets"]
      assert list(read.shape(name)) == entry["shape"] and read[name].tobytes() == data[start:end]
    os.truncate(tmp_path / "model.safetensors", 1)  # the kernel would kill a process that reads what is no longer there
    for name in made:
      shortened = pytest.raises(UserError, match="became shorter")
      with shortened if math.prod(read.shape(name)) else contextlib.nullcontext():
        read[name]

  examples(property, made=tensors())


FAULTS = {
  "a gap": lambda entry, data: (entry | {"data_offsets": [o + 1 for o in entry["data_offsets"]]}, data + b"0"),
  "data that no tensor has": lambda entry, data: (entry, data + b"0"),
  "a file that is cut": lambda entry, data: (entry, data[:-1]),
  "a shape of fractions": lambda entry, data: (entry | {"shape": [float(n) for n in entry["shape"]]}, data),
  "a shape that is negative": lambda entry, data: (entry | {"shape": [-1, *entry["shape"]]}, data),
  "true for a size": lambda entry, data: (entry | {"shape": [True, *entry["shape"]]}, data),
  "offsets of fractions": lambda entry, data: (
    entry | {"data_offsets": [float(n) for n in entry["data_offsets"]]},
    data,
  ),
  "three offsets": lambda entry, data: (entry | {"data_offsets": [*entry["data_offsets"], 0]}, data),
  "an unknown type": lambda entry, data: (entry | {"dtype": "F8_E4M3"}, data),
  "a type that is no name": lambda entry, data: (entry | {"dtype": ["F32"]}, data),
  "no type": lambda entry, data: ({k: v for k, v in entry.items() if k != "dtype"}, data),
  "a shape of another size": lambda entry, data: (entry | {"shape": [2, *entry["shape"]]}, data),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_safetensors_with_a_fault_are_refused(fault, examples, tmp_path):
  def property(made):
    header, data = described(made | {"last": ("F32", [3])})
    header["last"], data = FAULTS[fault](header["last"], data)
    (tmp_path / "model.safetensors").write_bytes(pack(header, data))
    with pytest.raises(UserError):
      Tensors(tmp_path)

  examples(property, made=tensors())


def test_safetensors_that_overlap_or_have_a_name_twice_are_refused(tmp_path):
  entry = '{"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}'
  for names, message in ((("a", "b"), "starts at byte 0"), (("a", "a"), "is there twice")):
    text = "{" + ", ".join(f'"{name}": {entry}' for name in names) + "}"
    (tmp_path / "model.safetensors").write_bytes(pack(text, b"12"))
    with pytest.raises(UserError, match=message):
      Tensors(tmp_path)
  header = {"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 2]}}
  (tmp_path / "model.safetensors").write_bytes(pack(header, b"12"))
  with pytest.raises(UserError, match="the type F4 of a is not supported"):
    Tensors(tmp_path)


# Files of one JSON object each, and what reads them.
FILES = {
  "characters.json": lambda folder: registry.load(folder),
  "bytes.json": lambda folder: registry.load(folder),
  "words.json": lambda folder: registry.load(folder),
  "inner/kind.json": lambda folder: registry.load(folder),
  "index.json": lambda folder: read_index(folder),
  "sources.json": lambda folder: check_sources(folder, {"start": Start("nowhere")}),
  "options.json": lambda folder: bilm.load(folder),
  "model.safetensors.index.json": lambda folder: Tensors(folder),
  "config.json": lambda folder: experiment.build(experiment.load_config(folder), folder),
  "metrics.jsonl": lambda folder: logs.read_metrics(epath.Path(folder)),
}


@pytest.mark.parametrize("name", FILES)
def test_any_object_in_a_file_is_read_or_refused(name, examples, tmp_path):
  kinds = {"words.json": {"kind": "lmjax.data.tokenizers.words:Words"}}
  kinds["inner/kind.json"] = {"kind": "lmjax.data.tokenizers.sentinels:Sentinels", "sentinels": 1}
  (tmp_path / name).parent.mkdir(exist_ok=True)
  if name in kinds:
    (tmp_path / "kind.json").write_text(json.dumps(kinds[name]))
  (tmp_path / "lm_weights.hdf5").write_bytes(b"")
  given = config.load("configs/quickstart.py:debug") if name == "config.json" else {}
  if given:
    Bytes().save(tmp_path / "tokenizer")

  def property(value, key):
    value = {"start": value} if name == "sources.json" else value
    value = given | {key: value} if given else value
    (tmp_path / name).write_text(json.dumps(value))
    with contextlib.suppress(UserError):
      FILES[name](tmp_path)

  examples(property, value=OBJECTS, key=st.sampled_from(sorted(given) or [""]))


def test_fields_give_what_they_promise(examples):
  def property(value, least, most):
    fields = Fields({"a": value}, "file")
    for method, right in (
      (lambda: fields.integer("a", 0, least, most), lambda v: type(v) is int and least <= v <= most),
      (lambda: fields.number("a", 0.0, least, most), lambda v: type(v) is float and least <= v <= most),
      (lambda: fields.boolean("a", True), lambda v: type(v) is bool),
      (lambda: fields.text("a", ""), lambda v: type(v) is str),
      (lambda: fields.sequence("a", int, []), lambda v: type(v) is list and all(type(i) is int for i in v)),
      (lambda: fields.section("a", {}).values, lambda v: type(v) is dict),
    ):
      with contextlib.suppress(UserError):
        found = method()
        assert (value is None and not found) or value is None or right(found), (value, found)

  examples(property, value=VALUES, least=st.integers(-5, 0), most=st.integers(0, 5))


def test_json_is_read_as_json(examples):
  def property(value, junk):
    text = json.dumps(value)
    with contextlib.suppress(ValueError):
      assert repr(files.parse_json(text, type(value))) == repr(json.loads(text))
    for data in (junk, text.encode()[:-1] + junk, junk + text.encode()):
      with contextlib.suppress(ValueError):
        files.parse_json(data)

  examples(property, value=OBJECTS, junk=st.binary(max_size=9))


def test_every_message_is_one_printable_line(examples):
  def property(text, longest):
    line = one_line(text, longest)
    assert line.isprintable() and len(line) <= longest
    message = str(UserError(text * 100))
    assert message.isprintable() and len(message) <= LONGEST
    message.encode()

  examples(property, text=st.text(st.characters()), longest=st.integers(1, 50))
