"""Files of data that expand without end, or become shorter while they are read: one line, and a process that lives."""

import gzip
import json

import pytest
from etils import epath

from lmjax.data.sources import gzipped
from lmjax.data.sources.conll import Conll
from lmjax.data.sources.labelled import Table
from lmjax.data.sources.labelled_records import JsonRecords
from lmjax.data.sources.pairs import JsonPairs
from lmjax.data.sources.records import JsonLines
from lmjax.data.sources.squad import Squad
from lmjax.data.sources.text import TextFiles
from lmjax.evals.suites import items
from lmjax.utils.errors import UserError

SOURCES = {
  "text": lambda path: TextFiles(path, "line"), "lines": JsonLines, "table": Table, "objects": JsonRecords,
  "pairs": JsonPairs, "words": Conll, "questions": Squad, "suite": lambda path: items._content(epath.Path(path)),
}  # fmt: skip


@pytest.mark.parametrize("name", SOURCES)
def test_what_expands_without_end_is_refused(name, tmp_path, monkeypatch):
  monkeypatch.setattr(gzipped, "SMALL", 10_000)
  file = tmp_path / "a.tsv.gz"
  file.write_bytes(gzip.compress(b" " * 10**7))  # a thousandth of it, in one line
  with pytest.raises(UserError, match=r"a.tsv.gz expands to more than \d+,\d+ bytes, which are more than 50 times"):
    len(SOURCES[name](str(file)))


def test_what_is_small_or_expands_as_text_does_is_read(tmp_path, monkeypatch):
  file = tmp_path / "a.txt.gz"
  file.write_bytes(gzip.compress(b"x" * 10**6))
  assert TextFiles(str(file), "line")[0] == "x" * 10**6
  monkeypatch.setattr(gzipped, "SMALL", 10)
  text = "".join(json.dumps({"number": i}) for i in range(1000))
  (tmp_path / "b.txt.gz").write_bytes(gzip.compress(text.encode()))
  assert TextFiles(str(tmp_path / "b.txt.gz"), "line")[0] == text


BROKEN = {
  "empty": b"",
  "text": b"text",
  "truncated": gzip.compress(b"text" * 999)[:-9],
  "without its end": gzip.compress(b"text")[:-2],
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)  # names: compressed bytes contain the time
def test_what_is_no_gzip_file_is_refused(content, tmp_path):
  (tmp_path / "a.txt.gz").write_bytes(content)
  source = TextFiles(str(tmp_path / "a.txt.gz"), "line")
  if not content:
    assert len(gzipped.unzip(epath.Path(tmp_path / "a.txt.gz"))) == 0
    return
  with pytest.raises(UserError, match="a.txt.gz cannot be read"):
    len(source)


@pytest.mark.parametrize("size", [0, 1, 5000])
def test_a_file_that_becomes_shorter_ends_in_a_line(size, tmp_path):
  """The kernel would kill a process that reads what is no longer there."""
  file = tmp_path / "a.txt"
  file.write_text("0123456789\n" * 10_000)
  source = TextFiles(str(file), "line")
  assert source[9999] == "0123456789\n"
  with open(file, "r+b") as opened:
    opened.truncate(size)
  for number in (9999, 0):
    with pytest.raises(UserError, match=rf"a.txt cannot be read: it had 110,000 bytes before, and now {size:,}"):
      source[number]
  new = TextFiles(str(file), "line")
  if size:
    assert len(new) == -(-size // 11), "a new source reads what is there now"


def test_a_file_that_becomes_longer_is_read_as_it_was(tmp_path):
  file = tmp_path / "a.txt"
  file.write_text("0123456789\n" * 10)
  source = TextFiles(str(file), "line")
  assert len(source) == 10
  with open(file, "a") as opened:
    opened.write("more\n")
  assert len(source) == 10 and source[9] == "0123456789\n"


def test_a_new_source_reads_a_file_as_it_is_now(tmp_path):
  """Rewritten in place, or another file under its name; of the same size, too."""
  for name, write in (("a.tsv", lambda text: text), ("a.tsv.gz", lambda text: gzip.compress(text, mtime=0))):
    file = tmp_path / name
    for number in range(4):
      content = write(f"sentence\tlabel\ntext {number}\t0\n".encode())
      if number % 2:
        (tmp_path / "new").write_bytes(content)
        (tmp_path / "new").replace(file)
      else:
        file.write_bytes(content)
      assert Table(str(file))[0].text == f"text {number}"
