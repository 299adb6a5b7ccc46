"""sources.json: the saved models outside of a run folder that the run depends on."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from lmjax.experiment import Experiment, Start
from lmjax.parallel import hosts
from lmjax.storage import base
from lmjax.storage.start import load_frozen
from lmjax.tasks.base import Frozen
from lmjax.utils import files, trust
from lmjax.utils.errors import UserError, one_line
from lmjax.utils.files import reading

NAME = "sources.json"
BLOCK = 2**22  # bytes read at a time


def attach_sources(
  run: Experiment, workdir: epath.PathLike | None = None, new: bool = False, abstract: bool = False
) -> Experiment:
  """Returns a run with the frozen models of its task, and with `start` at the path where its source lies now.

  A run whose parameters are saved no longer needs what it started from, unless its transform keeps it frozen.

  Args:
    workdir: the run folder, whose sources.json is checked, or written if the run is new.
    abstract: load shapes, dtypes and shardings only.

  Raises:
    UserError: a source is missing or has changed.
  """
  sources: dict[str, Start | Frozen] = dict(run.task.frozen())
  if run.start.path and (new or jax.tree.leaves(run.state(abstract=True).frozen.transform)):
    sources["start"] = run.start
  if sources and workdir is not None:
    if (epath.Path(workdir) / NAME).exists():
      sources = check_sources(workdir, sources)
    elif new:
      record_sources(workdir, sources)
      hosts.wait_for_all("sources recorded")
  start = sources.pop("start", run.start)
  models = {name: load_frozen(frozen, run.layout, abstract) for name, frozen in sources.items()}
  return dataclasses.replace(run, start=start, models=models)


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
    path = source.path if "://" in source.path else str(epath.Path(source.path).expanduser().absolute())
    records[name] = {
      "path": path, "step": saved.step, "files": _sizes(parts), "sha256": _hash(parts),
    }  # fmt: skip
  files.write(epath.Path(workdir) / NAME, json.dumps(records, indent=2) + "\n")


def check_sources(workdir: epath.PathLike, sources: Mapping[str, Start | Frozen]) -> dict[str, Start | Frozen]:
  """Returns the sources with the path and step that sources.json records.

  If a recorded path does not have the recorded files, the path of the given source is tried. Names and sizes of the
  files are compared; contents are not hashed again.

  Raises:
    UserError: a source is missing or has changed, or sources.json does not list it.
  """
  file = epath.Path(workdir) / NAME
  records = files.read_json(file) if file.exists() else {}
  return {name: _check(file, records.get(name), name, source) for name, source in sources.items()}


def _check(file: epath.Path, record: Any, name: str, source: Start | Frozen) -> Start | Frozen:
  match record:
    case None:
      raise UserError(f"{file} does not list the source {name!r}; choose another --workdir")
    case {"path": str(recorded), "step": int() | None as step, "files": dict(before)} if _are_sizes(before):
      reason = ""
    case _:
      wrong = one_line(repr(record), 200)
      raise UserError(f"{file}: {name} must be an object with a path, a step and the sizes of files, not {wrong}")
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
  advice = f"edit `path` of {name!r} in {file}"
  advice += ", or pass --config.start.path=NEW when training" if isinstance(source, Start) else ""
  raise UserError(f"the source {name!r} at {recorded} {reason}; {advice}")


def _are_sizes(values: dict[str, Any]) -> bool:
  return all(isinstance(value, int) for value in values.values())


def _sizes(files: Mapping[str, epath.Path]) -> dict[str, int]:
  return {name: file.stat().length for name, file in sorted(files.items())}


def _hash(files: Mapping[str, epath.Path]) -> str:
  """Returns the SHA-256 of the names and contents of files."""
  sha = hashlib.sha256()
  for name, file in sorted(files.items()):
    sha.update(name.encode() + b"\0")
    with reading(file), file.open("rb") as opened:
      while block := opened.read(BLOCK):
        sha.update(block)
  return sha.hexdigest()
