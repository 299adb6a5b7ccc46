"""What a teacher predicts, on disk: the most probable classes or words of each row, found by what the row contains.

index.json     `format`, `keys` of a batch that identify a row, `top`, `temperature`, `classes`, `teacher`, and for each
               part its number of `batches`
00000.npy, ..  a record for each row: its `key`, and `ids` and `log_probs` [..., top]
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath

from lmjax.utils import files
from lmjax.utils.errors import UserError, reason
from lmjax.utils.fields import Fields

FORMAT = 1
INDEX = "index.json"
SETTINGS = ("keys", "top", "temperature", "classes", "teacher")
PART = 64  # batches


def row_keys(batch: Mapping[str, np.ndarray], keys: Iterable[str]) -> list[bytes]:
  """Returns 16 bytes for each row of a batch, the same for rows of equal values."""
  arrays = {key: np.ascontiguousarray(batch[key]) for key in keys}
  rows = range(len(next(iter(arrays.values()))))

  def digest(row: int) -> bytes:
    made = hashlib.blake2b(digest_size=16)
    for key, array in arrays.items():
      made.update(f"{key} {array.dtype} {array.shape[1:]} ".encode())
      made.update(array[row].tobytes())
    return made.digest()

  return [digest(row) for row in rows]


def record(shape: tuple[int, ...]) -> np.dtype:
  """Returns the type of a record whose ids have a shape [..., top]."""
  return np.dtype([("key", "S16"), ("ids", "<i4", shape), ("log_probs", "<f4", shape)])


class Writer:
  """Writes batches in parts; a folder of the same settings is continued after its last whole part.

  Raises:
    UserError: the folder holds what another teacher or other settings gave.
  """

  def __init__(self, folder: epath.PathLike, settings: dict[str, Any]):
    self.folder, self.settings = files.expand(folder), settings
    self._parts: list[int] = []
    self._waiting: list[np.ndarray] = []
    self._batches = 0
    if (self.folder / INDEX).exists():
      before = Cached(self.folder)
      for name in SETTINGS:
        if (old := before.settings[name]) != settings[name]:
          raise UserError(f"{folder} holds scores with {name} {old!r}, not {settings[name]!r}; choose another --output")
      self._parts = before.batches
    files.make_folder(self.folder)

  @property
  def done(self) -> int:
    """The batches that are written."""
    return sum(self._parts)

  def add(self, batch: Mapping[str, np.ndarray], ids: np.ndarray, log_probs: np.ndarray) -> None:
    """Adds the rows of a batch."""
    made = np.zeros(len(ids), record(ids.shape[1:]))
    made["key"], made["ids"], made["log_probs"] = row_keys(batch, self.settings["keys"]), ids, log_probs
    if self._waiting and (self._waiting[0].dtype != made.dtype or self._batches == PART):
      self.flush()
    self._waiting.append(made)
    self._batches += 1

  def flush(self) -> None:
    """Writes a part, then the index that lists it."""
    if not self._waiting:
      return
    with files.replacing(_part(self.folder, len(self._parts))) as stream:
      np.save(stream, np.concatenate(self._waiting), allow_pickle=False)
    self._parts, self._waiting, self._batches = [*self._parts, self._batches], [], 0
    index = {"format": FORMAT} | self.settings | {"batches": self._parts}
    files.write(self.folder / INDEX, json.dumps(index, indent=2) + "\n")


@dataclasses.dataclass(frozen=True)
class Cached:
  """The rows of a folder, which are mapped, not read.

  Raises:
    UserError: the folder has none, or they are corrupt.
  """

  folder: epath.PathLike

  @functools.cached_property
  def _fields(self) -> Fields:
    file = files.expand(self.folder) / INDEX
    if not file.exists():
      raise UserError(f"{self.folder} has no {INDEX}: it is not a folder of cached scores; lmjax teacher writes one")
    fields = Fields(files.read_json(file), file)
    if fields.integer("format") != FORMAT:
      raise UserError(f"{file} has another format than {FORMAT}")
    return fields

  @functools.cached_property
  def settings(self) -> dict[str, Any]:
    """What the scores depend on."""
    fields = self._fields
    keys, teacher = fields.sequence("keys", str), fields.text("teacher")
    if not keys:
      raise UserError(f"{self.folder}/{INDEX}: keys names nothing that identifies a row")
    numbers = {name: fields.integer(name, least=1) for name in ("top", "classes")}
    return {"keys": keys, **numbers, "temperature": fields.number("temperature"), "teacher": teacher}

  @functools.cached_property
  def batches(self) -> list[int]:
    """The number of batches of each part."""
    return self._fields.sequence("batches", int)

  @functools.cached_property
  def _parts(self) -> list[np.ndarray]:
    parts = []
    for number in range(len(self.batches)):
      file = _part(files.expand(self.folder), number)
      with files.reading(file):
        try:
          part = np.load(file, mmap_mode="r", allow_pickle=False)
        except OSError:
          raise
        except Exception as error:  # numpy parses the header as Python, which fails in many ways
          raise UserError(f"{file} is corrupt: {reason(error)}") from error
      shape = (part.dtype.fields or {}).get("ids", (np.dtype("i4"),))[0].shape
      if part.ndim != 1 or part.dtype != record(shape) or not shape or shape[-1] != self.settings["top"]:
        raise UserError(f"{file} is corrupt: its records are not those of {INDEX}")
      parts.append(part)
    return parts

  @functools.cached_property
  def _places(self) -> dict[bytes, tuple[int, int]]:
    return {key.ljust(16, b"\0"): (n, row) for n, part in enumerate(self._parts) for row, key in enumerate(part["key"])}

  def rows(self, batch: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ids and the log probabilities of the rows of a batch.

    Raises:
      UserError: a row is not among those that the teacher has read.
    """
    keys = self.settings["keys"]
    here = row_keys(batch, keys) if batch.keys() >= set(keys) else [b""]
    if lost := [row for row, key in enumerate(here) if key not in self._places]:
      raise UserError(
        f"{self.folder} does not have row {lost[0]} of a batch among the {len(self._places):,} that the teacher has "
        "read; give both the same data, seed, batch and length, and lmjax teacher as many --config.steps"
      )
    kept = [self._parts[part][row] for part, row in map(self._places.__getitem__, here)]
    if len({row.dtype for row in kept}) > 1:
      raise UserError(f"{self.folder} is corrupt: rows of one batch have several lengths; write it again")
    ids, log_probs = (np.stack([row[name] for row in kept]) for name in ("ids", "log_probs"))
    within = 0 <= ids.min() <= ids.max() < self.settings["classes"]
    if not within or not np.all(np.isfinite(log_probs) & (log_probs < 1e-3)):
      raise UserError(f"{self.folder} is corrupt: a row has ids or probabilities that cannot be; write it again")
    return ids, log_probs


def _part(folder: epath.Path, number: int) -> epath.Path:
  return folder / f"{number:05}.npy"
