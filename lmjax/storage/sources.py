"""sources.json: the saved models outside of a run folder that the run depends on."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from lmjax.experiment import Start
from lmjax.parallel import hosts
from lmjax.storage import base
from lmjax.tasks.base import Frozen
from lmjax.utils import files, trust
from lmjax.utils.errors import UserError
from lmjax.utils.fields import Fields
from lmjax.utils.files import reading

NAME = "sources.json"


def recorded(
  workdir: epath.PathLike, sources: Mapping[str, Start | Frozen], new: bool = False
) -> Mapping[str, Start | Frozen]:
  """Returns the sources as sources.json records them; a new run records them.

  Raises:
    UserError: a source is missing or has changed.
  """
  if (files.expand(workdir) / NAME).exists():
    return check_sources(workdir, sources)
  if new:
    record_sources(workdir, sources)
    hosts.wait_for_all("sources recorded")
  return sources


def record_sources(workdir: epath.PathLike, sources: Mapping[str, Start | Frozen]) -> None:
  """Writes path, step, file sizes and SHA-256 of every source into sources.json, on the first host.

  Args:
    sources: {name: source}, such as {"start": Start(...), "reference": Frozen(...)}.

  Raises:
    UserError: there is no saved model at the path of a source.
  """
  if jax.process_index() != 0:
    return
  records: dict[str, dict[str, Any]] = {}
  for name, source in sources.items():
    saved = base.open(source.path, source.step)
    parts = saved.files()
    path = files.absolute(source.path)
    records[name] = {
      "path": path, "step": saved.step, "files": _sizes(parts), "sha256": _hash(parts),
    }  # fmt: skip
  files.write(files.expand(workdir) / NAME, json.dumps(records, indent=2) + "\n")


def check_sources(workdir: epath.PathLike, sources: Mapping[str, Start | Frozen]) -> dict[str, Start | Frozen]:
  """Returns the sources with the path and step that sources.json records.

  If a recorded path does not have the recorded files, the path of the given source is tried. Names and sizes of the
  files are compared; contents are not hashed again.

  Raises:
    UserError: a source is missing or has changed, or sources.json does not list it.
  """
  file = files.expand(workdir) / NAME
  records = Fields(files.read_json(file) if file.exists() else {}, file)
  return {name: _check(records, name, source) for name, source in sources.items()}


def _check(records: Fields, name: str, source: Start | Frozen) -> Start | Frozen:
  if name not in records:
    raise UserError(f"{records.where} does not list the source {name!r}; choose another --workdir")
  record, reason = records.section(name), ""
  recorded, step, listed = record.text("path"), record.integer("step", None), record.section("files")
  before = {key: listed.integer(key, most=2**63) for key in listed.values}
  for path in dict.fromkeys((recorded, source.path)):
    try:
      sizes = _sizes(base.open(path, step).files())
    except trust.UntrustedError:
      raise
    except UserError as error:
      reason = reason or f"is missing ({error})"
      continue
    if sizes == before:
      return dataclasses.replace(source, path=path, step=step)
    changed = min(key for key in {*sizes, *before} if sizes.get(key) != before.get(key))
    reason = f"has changed: {changed} has {sizes.get(changed, 0):,} bytes, not {before.get(changed, 0):,}"
  advice = f"edit `path` of {name!r} in {records.where}"
  advice += ", or pass --config.start.path=NEW when training" if isinstance(source, Start) else ""
  raise UserError(f"the source {name!r} at {recorded} {reason}; {advice}")


def _sizes(files: Mapping[str, epath.Path]) -> dict[str, int]:
  return {name: file.stat().length for name, file in sorted(files.items())}


def _hash(files: Mapping[str, epath.Path]) -> str:
  """Returns the SHA-256 of the names and contents of files."""
  sha = hashlib.sha256()
  for name, file in sorted(files.items()):
    sha.update(name.encode() + b"\0")
    with reading(file), file.open("rb") as opened:
      hashlib.file_digest(opened, lambda: sha)
  return sha.hexdigest()
