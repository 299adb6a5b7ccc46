"""Small files: whole or not at all, JSON or a clear error."""

import json
import math
import os

import pytest

from lmjax.storage.safetensors import unique_keys
from lmjax.utils import files
from lmjax.utils.errors import UserError, one_line
from lmjax.utils.fields import Fields


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
  file = tmp_path / "a.json"
  files.write(file, "before")
  with pytest.raises(ZeroDivisionError), files.replacing(file) as stream:
    stream.write(b"half")
    raise ZeroDivisionError
  assert file.read_text() == "before"
  with pytest.raises(UserError, match="could not be written: No space"), files.replacing(file) as stream:
    raise OSError(28, os.strerror(28))
  files.write(file, "after")
  assert file.read_text() == "after" and os.listdir(tmp_path) == ["a.json"]


def test_an_unchanged_file_is_left_alone(tmp_path):
  file = tmp_path / "a.json"
  files.write(file, "same")
  os.utime(file, (1, 1))
  files.write(file, b"same")
  assert file.stat().st_mtime == 1
  files.write(file, "other")
  assert file.stat().st_mtime > 1


def test_a_link_stays_a_link_and_a_pipe_is_written_to(tmp_path):
  (tmp_path / "link").symlink_to("target")
  files.write(tmp_path / "link", "text")
  assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == "text"
  os.mkfifo(tmp_path / "pipe")
  reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
  files.write(tmp_path / "pipe", "text")
  assert os.read(reader, 9) == b"text"
  os.close(reader)


@pytest.mark.parametrize("path", ["missing/a.json", "file/a.json", "folder", "n" * 300])
def test_what_cannot_be_written_is_an_error(tmp_path, path):
  (tmp_path / "file").write_text("")
  (tmp_path / "folder").mkdir()
  with pytest.raises(UserError, match="could not be written"):
    files.write(tmp_path / path, "text")
  assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


@pytest.mark.parametrize(
  "content",
  [b"", b"{", b'{"a": "\xff"}', b'{"a": "\\ud83d"}', b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", b"[1]", b"null"],
)
def test_what_is_not_json_is_an_error(tmp_path, content):
  (tmp_path / "a.json").write_bytes(content)
  with pytest.raises(UserError, match="a.json"):
    files.read_json(tmp_path / "a.json")


def test_json_is_read(tmp_path):
  (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + json.dumps({"a": "🙂"}).encode())
  assert files.read_json(tmp_path / "a.json") == {"a": "🙂"}
  for path in (tmp_path, tmp_path / "b.json"):
    with pytest.raises(UserError, match="cannot be read"):
      files.read_json(path)


def test_a_link_in_place_of_the_unfinished_file_is_not_followed(tmp_path):
  (tmp_path / ".a.json.part").symlink_to(tmp_path / "other")
  (tmp_path / "other").write_text("mine")
  files.write(tmp_path / "a.json", "text")
  assert (tmp_path / "other").read_text() == "mine" and sorted(os.listdir(tmp_path)) == ["a.json", "other"]


def test_lines_are_added_all_or_none(tmp_path):
  files.append(tmp_path / "a", "one\n")
  files.append(tmp_path / "a", "two\n")
  assert (tmp_path / "a").read_text() == "one\ntwo\n"
  with pytest.raises(UserError, match="missing/a could not be written: No such file"):
    files.append(tmp_path / "missing" / "a", "one\n")


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
  with files.new_folder(tmp_path / "above" / "new") as folder:
    (folder / "inner").mkdir()
    (folder / "inner" / "a").write_text("1")
    assert not (tmp_path / "above" / "new").exists()
  with pytest.raises(ZeroDivisionError), files.new_folder(tmp_path / "above" / "new") as folder:
    (folder / "inner").mkdir()
    (folder / "inner" / "a").write_text("2")
    raise ZeroDivisionError
  assert (tmp_path / "above" / "new" / "inner" / "a").read_text() == "1"
  (tmp_path / "above" / "new" / "mine").write_text("kept")
  with files.new_folder(tmp_path / "above" / "new") as folder:
    (folder / "inner").mkdir()
    (folder / "inner" / "a").write_text("3")
  assert (tmp_path / "above" / "new" / "inner" / "a").read_text() == "3"
  assert (tmp_path / "above" / "new" / "mine").read_text() == "kept" and os.listdir(tmp_path / "above") == ["new"]
  with pytest.raises(UserError, match="a file is in the way"), files.new_folder(tmp_path / "above" / "new" / "mine"):
    raise ZeroDivisionError


def test_a_pipe_is_not_read(tmp_path):
  os.mkfifo(tmp_path / "a.json")
  with pytest.raises(UserError, match="not a regular file"):
    files.read_json(tmp_path / "a.json")


def test_keys_are_unique_where_they_must_be():
  assert files.parse_json('{"a": 1, "a": 2}') == {"a": 2}
  with pytest.raises(ValueError, match="'a' is there twice"):
    files.parse_json('[{"a": 1, "a": 2}]', list, unique_keys)
  deep = 60 * "[" + 60 * "]"
  assert files.parse_json(deep, list)
  with pytest.raises(ValueError, match="nested too deeply"):
    files.parse_json(f"[[{deep}]]", list)


def test_numbers_fit_into_a_float():
  assert Fields({"a": 10**300}, "file").number("a") == 1e300
  for value in (10**400, -(10**400), math.inf, math.nan):
    with pytest.raises(UserError, match="a must be a finite number, not "):
      Fields({"a": value}, "file").number("a")


def test_a_long_name_has_space_for_the_part(tmp_path):
  """250 bytes of letters of two bytes each: what is written beside a file has a shorter name, and vanishes."""
  file = tmp_path / ("ä" * 125)
  files.write(file, "text")
  assert [path.name for path in tmp_path.iterdir()] == [file.name] and file.read_text() == "text"


def test_an_empty_folder_becomes_the_new_one_at_once(tmp_path):
  (tmp_path / "new").mkdir()
  (tmp_path / "new.part").mkdir()  # somebody's own
  with files.new_folder(tmp_path / "new") as part:
    (part / "a").write_text("a")
    inode = os.stat(part).st_ino
  assert os.stat(tmp_path / "new").st_ino == inode and sorted(os.listdir(tmp_path)) == ["new", "new.part"]


def test_messages_are_one_printable_line():
  assert one_line("a\nb\x1b[31m\x00\ud83d") == "a\\nb\\x1b[31m\\x00\\ud83d"
  assert len(str(UserError("x" * 10_000))) <= 2000 and "\n" not in str(UserError("a\nb"))
  assert one_line("naïve π 🙂") == "naïve π 🙂"


def test_a_path_with_a_null_character_is_refused():
  for path in ("a\0b", "/data/\0", "gs://bucket/\0"):
    with pytest.raises(UserError, match="null character"):
      files.expand(path)
