"""Mutations of valid files: bytes that flip, vanish or appear, JSON whose values change type, size or name, and what
else may be in the place of a file.

A mutation is drawn from a random generator, so a seed gives the same mutated file again.
"""

import base64
import errno
import gzip
import json
import os
import pathlib
import random
import shutil
import socket
from collections.abc import Callable
from typing import Any

NUMBERS = (
  0, -1, 1, 2, 3, 255, 2**31 - 1, 2**31, -(2**31), 2**63, 2**64, 10**30, 0.5, -0.0, 1e-300, 1e308, float("inf"),
  float("nan"),
)  # fmt: skip
STRINGS = (
  "", " ", "\x1b[31mred\x1b[0m", "\x00", "a\nb", "\u202e", "\ud83d", "x" * 5000, "../../escape", "/escape",
  "[bold]", "None", "🙂", "float8_e4m3fn", "F8_E4M3", "{}", "\ufeff",
)  # fmt: skip
OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [[]], [None], {"a": 1}, [1, "a", None], "__nested__")
DEEP = 100_000  # brackets


def _replaced(make: Callable[[pathlib.Path], None]) -> Callable[[pathlib.Path], None]:
  def change(file: pathlib.Path) -> None:
    file.unlink()
    make(file)

  return change


def _rewritten(make: Callable[[bytes], bytes]) -> Callable[[pathlib.Path], None]:
  return lambda file: None if file.write_bytes(make(file.read_bytes())) else None


def _make_socket(file: pathlib.Path) -> None:
  here = os.getcwd()
  os.chdir(file.parent)  # the path of a socket is short
  try:
    with socket.socket(socket.AF_UNIX) as made:
      made.bind(file.name)
  finally:
    os.chdir(here)


def _make_upper(file: pathlib.Path) -> None:
  shutil.copy(file, file.with_name(file.name.upper() + "."))
  file.rename(file.with_name(file.name.swapcase()))


def _text(data: bytes) -> str:
  return data.decode("latin-1")


# What may be in the place of a file, and its whole content in another form.
PLACES: dict[str, Callable[[pathlib.Path], None]] = {
  "nothing": lambda file: file.unlink(),
  "a folder": _replaced(lambda file: file.mkdir()),
  "a folder with a file of its name": _replaced(lambda file: (file / file.name).mkdir(parents=True)),
  "a pipe": _replaced(lambda file: os.mkfifo(file)),
  "a socket": _replaced(_make_socket),
  "a link to itself": _replaced(lambda file: file.symlink_to(file.name)),
  "a link to a device": _replaced(lambda file: file.symlink_to("/dev/zero")),
  "a link to nothing": _replaced(lambda file: file.symlink_to("nowhere")),
  "a name in other letters": _make_upper,
  "an empty file": _rewritten(lambda data: b""),
  "zeros": _rewritten(lambda data: b"\0" * max(len(data), 8)),
  "its half": _rewritten(lambda data: data[: len(data) // 2]),
  "a line end more": _rewritten(lambda data: data + b"\n"),
  "itself twice": _rewritten(lambda data: data * 2),
  "a byte order mark": _rewritten(lambda data: b"\xef\xbb\xbf" + data),
  "UTF-16": _rewritten(lambda data: _text(data).encode("utf-16")),
  "UTF-32": _rewritten(lambda data: _text(data).encode("utf-32")),
  "line ends of Windows": _rewritten(lambda data: data.replace(b"\n", b"\r\n")),
  "line ends of old Macs": _rewritten(lambda data: data.replace(b"\n", b"\r")),
  "gzip": _rewritten(lambda data: gzip.compress(data, mtime=0)),
  "nested lists": _rewritten(lambda data: b"[" * DEEP),
  "nested lists that end": _rewritten(lambda data: b"[" * DEEP + b"]" * DEEP),
  "nested objects": _rewritten(lambda data: b'{"a":' * DEEP + b"1" + b"}" * DEEP),
  "a number": _rewritten(lambda data: b"9" * 100_000),
  "null": _rewritten(lambda data: b"null"),
  "a string": _rewritten(lambda data: b'"text"'),
  "an empty object": _rewritten(lambda data: b"{}"),
  "an empty list": _rewritten(lambda data: b"[]"),
  "a list of objects": _rewritten(lambda data: b"[{}, {}]"),
  "half a pair of surrogates": _rewritten(lambda data: b'{"a": "\\ud800", "\\udfff": 1}'),
  "no text": _rewritten(lambda data: bytes(range(256)) * 4),
}
# What opening a file may raise: it may not be read, it vanished after it was listed, the disk fails.
DENIED = {"a file of someone else": errno.EACCES, "a file that vanishes": errno.ENOENT, "a broken disk": errno.EIO}


def spots(value: Any, path: tuple = ()) -> list[tuple]:
  """Returns the paths of all values inside of a JSON value."""
  found = [path]
  for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
    found += spots(inner, (*path, key))
  return found


def change(value: Any, path: tuple, fn: Callable[[Any], Any]) -> Any:
  """Returns a JSON value in which the value at a path is replaced by fn of it."""
  if not path:
    return fn(value)
  copy = dict(value) if isinstance(value, dict) else list(value)
  copy[path[0]] = change(copy[path[0]], path[1:], fn)
  return copy


def mutate_json(data: bytes, rng: random.Random) -> bytes:
  """Returns the text of a JSON value with one to three changes, and with duplicate keys or deep nesting."""
  value = json.loads(data)
  for _ in range(rng.randint(1, 3)):
    value = _changed(value, rng)
  text = json.dumps(value)
  if rng.random() < 0.05:
    text = text.replace('"__nested__"', "[" * DEEP + "]" * DEEP)
  if rng.random() < 0.05 and isinstance(value, dict) and value:
    key = rng.choice(list(value))
    text = f"{text[:-1]}, {json.dumps(key)}: {json.dumps(rng.choice([value[key], 0, None]))}}}"
  if rng.random() < 0.03:
    text = text.replace("1", "1" * 5000, 1)
  return text.encode()


def _changed(value: Any, rng: random.Random) -> Any:
  path = rng.choice(spots(value)[1:] or [()])
  kind = rng.randrange(6)
  if kind == 0 and path:  # a key or an item vanishes
    return change(value, path[:-1], lambda parent: _without(parent, path[-1]))
  if kind == 1 and path:  # or has another name, or is there again under one
    return change(value, path[:-1], lambda parent: _renamed(parent, path[-1], rng))
  if kind == 2:
    return change(value, path, lambda old: _near(old, rng))
  if kind == 3:
    return change(value, path, lambda old: rng.choice(NUMBERS))
  if kind == 4:
    return change(value, path, lambda old: rng.choice(STRINGS))
  return change(value, path, lambda old: rng.choice([*OTHERS, [old], {"a": old}, str(old)]))


def _without(parent: Any, key: Any) -> Any:
  if isinstance(parent, dict):
    return {k: v for k, v in parent.items() if k != key}
  return [item for i, item in enumerate(parent) if i != key]


def _renamed(parent: Any, key: Any, rng: random.Random) -> Any:
  if isinstance(parent, list):
    return [*parent, parent[key]]
  name = rng.choice([*STRINGS, str(key) + "x", str(key)[:-1], *parent])
  return {(name if k == key else k): v for k, v in parent.items()}


def _near(old: Any, rng: random.Random) -> Any:
  """Returns a value of the same type."""
  if isinstance(old, bool) or old is None:
    return not old
  if isinstance(old, int | float):
    return rng.choice([old + 1, old - 1, -old, old * 2, old * 1000, float(old), old / 3, 0])
  if isinstance(old, str):
    return rng.choice([old[:-1], old + "x", old.upper(), old[::-1], old * 50])
  return rng.sample(old, len(old)) if isinstance(old, list) else dict(rng.sample(list(old.items()), len(old)))


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
  """Returns bytes with one to four flips, cuts, insertions or copies of parts; half of them near the start."""
  for _ in range(rng.randint(1, 4)):
    at = rng.randrange(len(data) + 1) if rng.random() < 0.5 else int((len(data) + 1) ** rng.random()) - 1
    size = rng.choice((1, 1, 2, 4, 8, 64))
    kind = rng.randrange(6)
    if kind == 0:
      data = data[:at]
    elif kind == 1:
      data = data[:at] + data[at + size :]
    elif kind == 2:
      data = data[:at] + rng.randbytes(size) + data[at:]
    elif kind == 3:
      data = data[:at] + rng.choice((b"\0", b"\xff", b"9", b"{", b'"')) * size + data[at + size :]
    elif kind == 4 and at < len(data):
      data = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    else:
      other = rng.randrange(len(data) + 1)
      data = data[:at] + data[other : other + size] + data[at:]
  return data


def mutate(name: str, data: bytes, seed: int) -> bytes:
  """Returns the mutation of a file with a seed; a line of a .jsonl file is mutated as JSON."""
  rng = random.Random(f"{name} {seed}")
  if rng.random() < 0.4:
    return mutate_bytes(data, rng)
  try:
    if name.endswith(".jsonl"):
      lines = data.split(b"\n")
      number = rng.randrange(max(len(lines) - 1, 1))
      return b"\n".join([*lines[:number], mutate_json(lines[number], rng), *lines[number + 1 :]])
    if name.endswith(".safetensors"):
      size = int.from_bytes(data[:8], "little")
      header = mutate_json(data[8 : 8 + size], rng)
      return len(header).to_bytes(8, "little") + header + data[8 + size :]
    return mutate_json(data, rng)
  except ValueError:  # no JSON
    return mutate_bytes(data, rng)


def minimise(data: bytes, fails: Callable[[bytes], bool], tries: int = 300) -> bytes:
  """Returns a smaller file that still fails: parts are removed, halves first, as long as there are tries left."""
  size = max(len(data) // 2, 1)
  while tries > 0:
    at, smaller = 0, False
    while at < len(data) and tries > 0:
      tries -= 1
      shorter = data[:at] + data[at + size :]
      if fails(shorter):
        data, smaller = shorter, True
      else:
        at += size
    if size == 1 and not smaller:
      break
    size = max(size // 2, 1)
  return data


def show(data: bytes) -> str:
  """Returns bytes as an expression from which a test can make them again."""
  if len(data) <= 200 and data.isascii():
    return repr(data)
  text = base64.b64encode(data).decode()
  return f"base64.b64decode({text!r})" if len(text) <= 8000 else f"{len(data):,} bytes, beginning with {data[:100]!r}"
