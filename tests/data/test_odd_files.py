"""Files as people have them: names with brackets, byte order marks, UTF-16, JSON under any name, bad records."""

import gzip
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax import config
from lmjax.data.documents import Documents
from lmjax.data.objectives.causal import Text
from lmjax.data.objectives.seq2seq import TextToText
from lmjax.data.sources.base import BadRecord, read_document, texts
from lmjax.data.sources.files import open_files
from lmjax.data.sources.pair import Pair
from lmjax.data.sources.pairs import ParallelLines
from lmjax.data.sources.paths import expand_paths
from lmjax.data.sources.records import JsonLines
from lmjax.data.sources.text import TextFiles
from lmjax.data.sources.write_shards import Preparation
from lmjax.data.tokenizers import registry
from lmjax.utils.errors import UserError
from lmjax.utils.files import expand

NAMES = st.text("ab[]*?!,' é中-", min_size=1, max_size=8).filter(lambda name: name.strip(" ."))


@settings(max_examples=60, deadline=None)
@given(NAMES, NAMES, NAMES)
def test_a_path_that_is_there_is_never_a_pattern(tmp_path_factory, parent, name, other):
  folder = tmp_path_factory.mktemp("paths") / parent
  folder.mkdir()
  for file in {name, other}:
    (folder / f"{file}.txt").write_text(file)
  assert [path.name for path in expand_paths(str(folder / f"{name}.txt"))] == [f"{name}.txt"]
  both = {f"{name}.txt", f"{other}.txt"}
  assert "*" in (name, other) or {path.name for path in expand_paths(str(folder / "*.txt"))} == both
  assert {path.name for path in expand_paths(str(folder))} == both
  assert {path.name for path in expand(folder).glob("*.txt")} == both
  (choice,) = (
    [config.variant(f"files='{folder}/{name}.txt',debug", files="", debug=False)]
    if "'" not in name + parent
    else [None]
  )
  assert choice is None or (choice.debug and choice.files == f"{folder}/{name}.txt")


def test_a_comma_in_the_name_of_a_file_needs_no_quotes(tmp_path):
  (tmp_path / "a, b").mkdir()
  (tmp_path / "a, b" / "c,d.txt").write_text("x")
  for path in (f"{tmp_path}/a, b/c,d.txt", f"{tmp_path}/a, b/*.txt"):
    assert config.variant(f"debug,files={path}", files="", debug=False).files == path
    assert config.variant(f"files={path},debug", files="", debug=False).debug
  with pytest.raises(UserError, match="no variant 'debgu'"):
    config.variant(f"files={tmp_path}/a.txt,debgu", files="", debug=False)


def test_a_folder_stands_for_the_texts_in_it(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  for name in ("b.txt", "a.md", "c.TXT", "no.json", ".hidden.txt"):
    (tmp_path / name).write_text(name)
  (tmp_path / "d.txt.gz").write_bytes(gzip.compress(b"d"))
  for path in (str(tmp_path), "~", "~/"):
    assert len(TextFiles(path, document="file")) == 4
  with pytest.raises(UserError, match="no file matches"):
    TextFiles(str(tmp_path / "none"))[0]


CODECS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"]


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("codec", CODECS)
def test_all_encodings_are_decoded_or_refused(codec, zipped, tmp_path):
  """Every record of every file is there and equal, or the file is named in an error."""
  rows = [f"one {i} é 中 😀" for i in range(9)]
  mark = {"utf-16-be": "\ufeff", "utf-32-be": "\ufeff"}.get(codec, "")
  suffix = ".gz" if zipped else ""
  lines = {"a.jsonl": [json.dumps({"text": row}, ensure_ascii=False) for row in rows], "a.txt": rows, "b.txt": rows}
  for name, own in lines.items():
    data = (mark + "".join(f"{line}\n" for line in own)).encode(codec)
    (tmp_path / (name + suffix)).write_bytes(gzip.compress(data) if zipped else data)
  paths = {name: str(tmp_path / (name + suffix)) for name in lines}
  sources = (
    (JsonLines(paths["a.jsonl"]), rows),
    (TextFiles(paths["a.txt"], document="line"), [f"{row}\n" for row in rows]),
    (ParallelLines(paths["a.txt"], paths["b.txt"]), [Pair(row, row) for row in rows]),
  )
  for source, wanted in sources:
    if codec == "utf-16-le":  # no byte order mark
      with pytest.raises(UserError, match="zero bytes"):
        len(source)
    else:
      assert [source[i] for i in range(len(source))] == wanted


@pytest.mark.parametrize("name", ["x.ndjson", "x.json", "x.JSONL", "x.data", "x", "x.jsonl.gz", "x.json.gz"])
def test_json_lines_are_recognised_under_any_name(name, tmp_path):
  data = b"".join(json.dumps({"t": f"row {i}"}).encode() + b"\n" for i in range(3))
  (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
  source = open_files([str(tmp_path / name)], "t")
  assert isinstance(source, JsonLines) and [source[i] for i in range(3)] == ["row 0", "row 1", "row 2"]
  with pytest.raises(UserError, match="is json, not text"):
    TextFiles(str(tmp_path / name))[0]
  with pytest.raises(UserError, match="--document has no effect"):
    open_files([str(tmp_path / name)], document="line")


@pytest.mark.parametrize("content", ['[{"text": "a"}]', '{\n "text": "a"\n}', "[\n1]"])
def test_json_that_is_not_lines_is_refused(content, tmp_path):
  (tmp_path / "x.json").write_text(content)
  with pytest.raises(UserError, match="not an object in each line"):
    open_files([str(tmp_path / "x.json")])


def test_a_key_of_text_files_is_refused_and_text_that_looks_odd_is_text(tmp_path):
  (tmp_path / "x.txt").write_text('{"text": "a"}\n')
  (tmp_path / "y.log").write_text("{ not JSON\n")
  with pytest.raises(UserError, match="--key has no effect"):
    open_files([str(tmp_path / "x.txt")], key="text")
  for name in ("x.txt", "y.log"):
    assert isinstance(open_files([str(tmp_path / name)]), TextFiles)


class Odd:
  """A source of which every `every`th record raises an error."""

  def __init__(self, count: int, every: int, error: Exception):
    self.count, self.every, self.error = count, every, error

  def __len__(self):
    return self.count

  def __getitem__(self, index):
    if index % self.every == self.every // 2:
      raise self.error
    return f"document {index}"


ERRORS = (
  ValueError("a"),
  KeyError("b"),
  RecursionError(),
  OverflowError("c"),
  MemoryError(),
  TypeError(),
  OSError(5, "io"),
)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_one_bad_record_never_stops_a_corpus(error, tmp_path):
  """Whatever reading or encoding raises is a skipped record: in training, prepare and tokenizer training."""

  class One(Odd):
    def __getitem__(self, index):
      return "half \ud83d" if index == 60 else super().__getitem__(index)

  source = One(1000, 999, error)
  tokenizer = registry.train("bpe", texts(source), 300)
  assert len(list(texts(source))) == 998
  documents = Text(source, source, 16).documents(source, tokenizer, 0, 1)
  read = [documents.read(0, i) for i in range(1000)]
  assert sum(isinstance(document, BadRecord) for document in read) == 2
  assert len(Text(source, source, 16).validate(tokenizer, 4)) > 10
  *_, (read, counts) = Preparation(source, tokenizer).run(tmp_path / "out")
  assert read == 1000 and counts["skipped"] == 2 and counts["documents"] == 998


def test_many_bad_records_stop_it_and_name_one(tmp_path):
  source = Odd(300, 4, ERRORS[0])
  with pytest.raises(UserError, match="more than 1 %.*record"):
    list(Preparation(source, registry.Bytes()).run(tmp_path / "out"))


def test_an_error_about_the_whole_source_is_not_a_bad_record():
  source = Odd(9, 4, UserError("no column"))
  with pytest.raises(UserError, match="no column"):
    read_document(source, 2)
  pairs = TextToText(source, source, 8)
  with pytest.raises(UserError, match="needs pairs"):
    read_document(source, 0, pairs.documents(source, registry.Bytes(), None, 1).encode)


def test_reading_in_order_is_as_before():
  source = [f"document {i}" for i in range(50)]
  documents = Documents(source, registry.Bytes(), 3, 2)
  read = [registry.Bytes().decode(documents.read(s, n)[0][1:-1]) for s in (0, 1) for n in range(25)]
  assert sorted(read) == sorted(source) and read != source
  assert np.array_equal(documents.read(0, 3)[0], Documents(source, registry.Bytes(), 3, 2).read(0, 3)[0])
