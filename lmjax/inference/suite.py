"""Evaluation suites on a loaded model: items, scores, and files that let an interrupted evaluation continue."""

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from rich.table import Table

from lmjax.data.tokenizers.base import fingerprint
from lmjax.evals.bootstrap import interval
from lmjax.evals.suites import memorisation, metrics, page, task_files
from lmjax.evals.suites.generated import score_answer
from lmjax.evals.suites.items import Item, make_items
from lmjax.evals.suites.task_checks import check_names
from lmjax.evals.suites.task_files import TaskFile
from lmjax.inference import scoring
from lmjax.inference.corpus_checks import Corpus, auc, contaminated, memorised, min_k, plain_items
from lmjax.inference.progress import ProgressBar
from lmjax.parallel.sharding import use_layout
from lmjax.storage.base import LoadedModel
from lmjax.utils import files, pytree
from lmjax.utils.errors import UserError
from lmjax.utils.pytree import Tree

VERSION = 4  # of prompts, scores and metrics; a change of what is measured increases it


@dataclasses.dataclass(frozen=True)
class Suite:
  """What to evaluate, and where its results are kept.

  tasks: of one suite. output: a folder; results.json, and for each task a JSONL file of its items. data: the folder of
  the data. shots, limit: of every task; None for the tasks' own shots, and for all items. corpus: in which items and
  answers are searched. templates: whether each task has all of its templates. min_k: percent of an item's tokens, of
  Min-K % probability; 0 for none.
  """

  tasks: Sequence[TaskFile]
  output: epath.Path
  data: str | None = None
  shots: int | None = None
  limit: int | None = None
  stride: int = 0
  corpus: Corpus | None = None
  templates: bool = False
  min_k: float = 0.0


def choose(suite: str, only: Sequence[str] = (), *more: str) -> list[TaskFile]:
  """Returns the tasks of suites, tasks or YAML files; `only` those of some names, or of groups of these names.

  Raises:
    UserError: there is no such suite, no such task in it, or two different tasks have one name.
  """
  tasks = check_names([task for name in (suite, *more) for task in task_files.load(name)])
  known = {task.task for task in tasks} | {group for task in tasks for group in task.groups}
  for name in only:
    if name not in known:
      raise UserError(f"evaluate: {', '.join((suite, *more))} has no task {name!r}; it has {', '.join(sorted(known))}")
  return [task for task in tasks if not only or {task.task, *task.groups} & set(only)]


def evaluate(loaded: LoadedModel, suite: Suite) -> dict[str, Any]:
  """Returns the results of a suite, which are written to its folder, too.

  Items whose results are there are not computed again, unless the model, their data, the templates, the number of shots
  or the version of the suite has changed.

  Raises:
    UserError: the data or the results cannot be read or written, or the model cannot do a task.
  """
  model_hash, tasks = hash_model(loaded), _expand(suite)
  results: dict[str, Any] = {
    "version": VERSION,
    "model": model_hash,
    "step": loaded.step,
    "shots": suite.shots,
    "limit": suite.limit,
    "tasks": {},
  }
  if jax.process_index() == 0:
    files.make_folder(suite.output)
  items_of: dict[str, list[dict[str, Any]]] = {}
  bins: dict[str, page.Bins] = {}
  with use_layout(loaded.layout):
    for task in tasks:
      items = make_items(task, suite.data, suite.shots, suite.limit)
      shots = task.num_fewshot if suite.shots is None else suite.shots
      key = {"version": VERSION, "task": task.hash(), "shots": shots, "model": model_hash, "stride": suite.stride}
      records = _run(loaded, task, items, ItemFile(suite.output / f"{task.task}.jsonl", key), suite.stride)
      results["tasks"][task.task] = {
        "items": len(items), "shots": shots, "limit": suite.limit, "template": task.hash(), "groups": list(task.groups),
        "version": task.metadata.get("version"), "metrics": metrics.summarise(task, records),
        "by": metrics.report_by(task, records),
      }  # fmt: skip
      if suite.min_k:
        results["tasks"][task.task]["min_k"] = _min_k(loaded, task, suite, key)
      items_of[task.task] = records
      results["groups"] = _groups(tasks, items_of)
      if suite.templates:
        results["templates"] = _templates(suite, results["tasks"])
      if task.output_type == "multiple_choice" and "calibration_error" in task.metrics():
        bins[task.task] = metrics.calibration_bins(records)
      if jax.process_index() == 0:
        _write(suite, results, bins)
  if suite.corpus and jax.process_index() == 0:
    checked = [task for task in tasks if task.dataset_path != "corpus"]  # what is drawn from it occurs in it
    overlaps = contaminated(checked, suite.data, suite.limit, items_of, suite.corpus, suite.output) if checked else {}
    for name, overlap in overlaps.items():
      result = results["tasks"][name]
      result["contamination"] = overlap
      if "min_k" in result:
        result["min_k"]["auc"] = auc(result["min_k"]["items"], overlap["dirty_items"])
    answers = {name: records for name, records in items_of.items() if records and "answer" in records[0]}
    for name, report in memorised(loaded, answers, suite.corpus, suite.output).items() if answers else ():
      results["tasks"][name]["memorisation"] = report
    _write(suite, results, bins)
  return results


def _expand(suite: Suite) -> list[TaskFile]:
  """Returns the tasks of a suite: with prompts from its corpus, and with each of their templates."""
  tasks = []
  for task in suite.tasks:
    if task.dataset_path == "corpus":
      if not suite.corpus:
        raise UserError(f"evaluate: {task.task} needs a --corpus, from which its prompts are drawn")
      prompts = memorisation.prompts(suite.corpus.open(), int(task.metadata.get("prompts", 100)))
      task = dataclasses.replace(task, dataset_kwargs={"prompts": prompts})
    tasks += task_files.variants(task) if suite.templates else [task]
  return tasks


def _templates(suite: Suite, results: dict[str, Any]) -> dict[str, Any]:
  """Returns mean, spread and worst of each metric over the templates of each task that has been measured."""
  report = {}
  for task in suite.tasks:
    measured = [results[v.task]["metrics"] for v in task_files.variants(task) if v.task in results]
    if measured:
      report[task.task] = {"templates": len(measured), "metrics": metrics.across_templates(measured)}
  return report


def _write(suite: Suite, results: dict[str, Any], bins: dict[str, page.Bins]) -> None:
  files.write(suite.output / "results.json", json.dumps(results, indent=2) + "\n")
  files.write(suite.output / "results.html", page.render("Evaluation", results, bins))


def _min_k(loaded: LoadedModel, task: TaskFile, suite: Suite, key: dict[str, Any]) -> dict[str, Any]:
  """Returns the mean of a task's Min-K % probabilities with its interval, and those of its items."""
  file = ItemFile(suite.output / f"{task.task}.min_k.jsonl", key | {"percent": suite.min_k})
  items = plain_items(task, suite.data, suite.limit)
  values = min_k(loaded, task, [item for item in items if not file.has(item)], suite.min_k)
  file.add({"item": i, "prompt": prompt_hash(items[i]), "min_k": value} for i, value in values.items())
  by_item = {item.number: file.records[item.number]["min_k"] for item in items if item.number in file.records}
  low, high = interval(np.array(list(by_item.values())), np.mean)
  mean = float(np.mean(list(by_item.values())))
  return {"percent": suite.min_k, "value": mean, "low": low, "high": high, "items": by_item}


def _groups(tasks: Sequence[TaskFile], items_of: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
  """Returns the mean over the tasks of each group that reports one, of those that are measured."""
  groups = {}
  for group in dict.fromkeys(name for task in tasks for name in task.means):
    members = [items_of[task.task] for task in tasks if group in task.means and task.task in items_of]
    if members:
      groups[group] = {"tasks": len(members), "metrics": {"acc": metrics.mean_of_tasks("acc", members)}}
  return groups


def hash_model(loaded: LoadedModel) -> str:
  """Returns a hash of a model's parameters, config and tokenizer, from exact sums: it is the same on any mesh."""

  @jax.jit
  def sums(params: Tree) -> Tree:
    """Returns for each parameter two sums that a change of a value or an exchange of two values changes."""
    odd = np.array([0x9E3779B9, 0x85EBCA6B, 0xC2B2AE35], np.uint32)  # whose products lose no bits

    def both(x: jax.Array) -> jax.Array:
      x = x.astype("uint8") if x.dtype.name in ("bool", "int4", "uint4") else x
      bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype("uint32").reshape(-1)
      mixed = (bits ^ (jax.lax.iota("uint32", bits.size) * odd[0])) * odd[1]
      mixed = (mixed ^ (mixed >> 15)) * odd[2]
      return jax.numpy.stack([mixed.sum(dtype="uint32"), (mixed ^ (mixed >> 13)).sum(dtype="uint32")])

    return jax.tree.map(both, params)

  with use_layout(loaded.layout):
    values = {
      name: np.asarray(value).tobytes().hex() for name, value in pytree.named_leaves(sums(loaded.params)).items()
    }
  text = [repr(loaded.task), fingerprint(loaded.tokenizer), loaded.length, values]
  return hashlib.sha256(json.dumps(text, sort_keys=True).encode()).hexdigest()[:16]


def prompt_hash(item: Item) -> str:
  """Returns a hash of what an item asks and of what is right."""
  text = json.dumps([item.contexts, item.continuations, item.choices, item.target], default=str)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


class ItemFile:
  """The JSONL file of a task's items: a first line that says what they depend on, then a line for each item.

  A file that depends on something else is started anew; a line that was cut or changed, which its checksum (CRC-32)
  shows, is dropped.
  """

  def __init__(self, path: epath.Path, key: dict[str, Any]):
    self.path, self.records = path, {}
    self._enabled = jax.process_index() == 0
    lines = files.read_text(path).split("\n") if path.exists() else []
    kept = [json.dumps(key)]
    if lines and lines[0] == kept[0]:
      for line in lines[1:]:
        try:
          record = files.parse_json(line)
        except ValueError:
          continue
        if record.pop("checksum", None) == _checksum(record):
          self.records[record["item"]] = record
          kept.append(line)
    if self._enabled and lines != [*kept, ""]:
      files.write(path, "\n".join(kept) + "\n")

  def has(self, item: Item) -> bool:
    """Returns whether the result of an item is there, and that of its present prompt."""
    return self.records.get(item.number, {}).get("prompt") == prompt_hash(item)

  def add(self, records: Iterable[dict[str, Any]]) -> None:
    """Appends the results of items."""
    records = list(records)
    self.records |= {record["item"]: record for record in records}
    if self._enabled and records:
      summed = (record | {"checksum": _checksum(record)} for record in records)
      files.append(self.path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in summed))


def _checksum(record: dict[str, Any]) -> str:
  return f"{zlib.crc32(json.dumps(record, sort_keys=True).encode()):08x}"


def _run(
  loaded: LoadedModel, task: TaskFile, items: Sequence[Item], file: ItemFile, stride: int
) -> list[dict[str, Any]]:
  """Returns the records of all items, of which those that the file has are not computed again."""
  missing = [item for item in items if not file.has(item)]
  with ProgressBar(task.task, len(items), len(items) - len(missing), "items") as progress:

    def done(records: list[dict[str, Any]]) -> None:
      file.add(records)
      progress.advance(len(records))

    if task.output_type == "generate_until":
      _generate(loaded, task, missing, done)
    else:
      _score(loaded, task, missing, stride, done)
  return [file.records[item.number] for item in items]


def _score(
  loaded: LoadedModel, task: TaskFile, items: Sequence[Item], stride: int, done: Callable[[list[dict[str, Any]]], None]
) -> None:
  requests = [list(zip(item.contexts, item.continuations, strict=True)) for item in items]
  rolling = task.output_type == "loglikelihood_rolling"
  name = lambda number: f"task {task.task}, item {items[number].number}"  # noqa: E731
  for complete in scoring.scores(loaded, requests, rolling, stride, name):
    for score in complete:
      if np.isnan(score.log_likelihoods).any():
        raise UserError(f"{name(score.number)}: the model's log-likelihood is not a number (NaN)")
    done([_record(task, items[score.number], score) for score in complete])


def _record(task: TaskFile, item: Item, score: scoring.Score) -> dict[str, Any]:
  first = {"item": item.number, "prompt": prompt_hash(item)} | metrics.labels(task, item)
  if task.output_type == "multiple_choice":
    return first | metrics.score_choices(item, score.log_likelihoods.tolist())
  if task.output_type == "loglikelihood_rolling":
    return first | metrics.score_rolling(item, float(score.log_likelihoods[0]))
  return first | metrics.score_text(float(score.log_likelihoods[0]), bool(score.greedy[0]))


def _generate(
  loaded: LoadedModel, task: TaskFile, items: Sequence[Item], done: Callable[[list[dict[str, Any]]], None]
) -> None:
  prompts = [item.contexts[0] for item in items]
  records = []
  for i, answer in scoring.answers(loaded, prompts, task.generation_kwargs, (task.fewshot_delimiter,)):
    first = {"item": items[i].number, "prompt": prompt_hash(items[i])} | metrics.labels(task, items[i])
    records.append(first | score_answer(task, items[i], answer))
    if len(records) == scoring.GROUP:
      done(records)
      records = []
  if records:
    done(records)


def table(results: dict[str, Any]) -> Table:
  """Returns the results as a table of a line for each metric of each task."""
  view = Table("task", "items", "shots", "metric", "value", "95 % interval")
  for name, result in results["tasks"].items():
    for metric, score in result["metrics"].items():
      view.add_row(name, str(result["items"]), str(result["shots"]), metric, *_cells(score))
    for part, score in result["by"].items():
      view.add_row(f"  {part}", str(score["items"]), "", "acc", *_cells(score))
    if score := result.get("min_k"):
      view.add_row("", "", "", f"Min-{score['percent']:g} % log p", *_cells(score))
    if (score := result.get("memorisation")) and score["windows"]:
      view.add_row("", str(score["answers"]), "", f"memorised, {score['windows']} windows", *_cells(score))
    overlap = result.get("contamination", {})
    for part in ("clean", "dirty", "difference") if overlap else ():
      for metric, score in overlap["metrics"].get(part, {}).items():
        view.add_row(f"  {part}", str(overlap.get(part, "")), "", metric, *_cells(score))
    if overlap and not overlap["metrics"].get("difference"):
      view.add_row(f"  dirty {overlap['dirty']}, unchecked {overlap['unchecked']}", "", "", "", "", "")
  for name, result in results.get("groups", {}).items():
    for metric, score in result["metrics"].items():
      view.add_row(f"{name}, mean of {result['tasks']} tasks", "", "", metric, *_cells(score))
  for name, result in results.get("templates", {}).items():
    for metric, score in result["metrics"].items():
      values = f"spread {score['spread']:.4f}, worst {score['worst']:.4f}"
      view.add_row(f"{name}, {result['templates']} templates", "", "", metric, f"{score['mean']:.4f}", values)
  return view


def _cells(score: dict[str, float]) -> tuple[str, str]:
  return f"{score['value']:.4f}", f"{score['low']:.4f} to {score['high']:.4f}"
