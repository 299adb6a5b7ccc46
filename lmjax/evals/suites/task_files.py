"""Evaluation tasks as YAML files, in the format of EleutherAI's lm-evaluation-harness, as far as it is data.

A file describes one task, or with `group` a list of tasks. `include` names a file whose fields come first. Fields that
need Python code (`!function`), a download or a filter are refused by name.
"""

import dataclasses
import hashlib
import importlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from lmjax.evals.suites.task_checks import check_task
from lmjax.utils import files
from lmjax.utils.errors import UserError, did_you_mean, reason

FOLDER = epath.Path(__file__).parent / "tasks"
OUTPUT_TYPES = ("multiple_choice", "loglikelihood", "loglikelihood_rolling", "generate_until")
DATASETS = ("json", "csv", "text", "beliefs", "corpus")  # the last two: see beliefs.py and memorisation.py
SPLITS = ("test", "validation", "train")  # the first that a task has is evaluated
# Fields of lm-evaluation-harness that change no score here.
IGNORED = ("tag", "should_decontaminate", "repeats", "task_alias", "group_alias")
CORPUS_METRICS = ("bleu", "chrf")  # whose counts are added up over items
ROUGE = ("rouge1", "rouge2", "rougeL")
METRICS = {
  "multiple_choice": ("acc", "acc_norm", "acc_bytes", "acc_pair", "calibration_error", "log_ratio"),
  "loglikelihood": ("perplexity", "acc"),
  "loglikelihood_rolling": ("word_perplexity", "byte_perplexity", "bits_per_byte", "bits_per_word"),
  "generate_until": ("exact_match", "answer_f1", *CORPUS_METRICS, *ROUGE),
}
DEFAULTS = {"generate_until": 1, "loglikelihood_rolling": 3}  # metrics without a metric_list; two of other types
MAX_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # names of one setting
GENERATION = ("until", "do_sample", "temperature", "top_k", "top_p", *MAX_TOKENS)
EXACT_MATCH = ("regexes_to_ignore", "ignore_case", "ignore_punctuation", "ignore_numbers")  # its options
METRIC_FIELDS = ("metric", "aggregation", "higher_is_better", *EXACT_MATCH)
UNHASHED = ("folder", "groups", "means", "doc_to_decontamination_query")  # these change no prompt and no score
TEMPLATE_FIELDS = ("doc_to_text", "doc_to_choice", "doc_to_target", "target_delimiter", "description", "gen_prefix")
DEEPEST = 8  # files that include each other, groups of groups
LARGEST = 100_000  # values in a file


@dataclasses.dataclass(frozen=True)
class TaskFile:
  """One task, as its YAML file describes it; the names of the fields are those of lm-evaluation-harness.

  dataset_kwargs: {"data_files": {split: path, list of paths or globs, or path}, "field": key of the list in a JSON
  file, "sample_by": line, paragraph or document, of text}. metadata: `version`; `labels`, a file with the label of each
  item, one a line; `columns` and `delimiter` of CSV; `file`, a field that gets the name of an item's file; `shots_by`,
  a field which examples have in common with their item; `pair`, a field of the data which items share that are right
  only together (acc_pair); `report_by`, fields by which accuracy is reported; `compare: {field,
  first, second}`, two values of a field whose difference in accuracy is reported, over pairs if there is a `pair`;
  `fields`, templates of further fields of the data; `templates`, fields that replace the task's, one set for each
  variant of its prompts; `answer: number`, which compares the last number of generated answers.
  """

  task: str
  dataset_path: str
  dataset_kwargs: Mapping[str, Any]
  doc_to_target: str | int | list
  output_type: str = "generate_until"
  doc_to_text: str | int = ""
  doc_to_choice: str | list | Mapping | None = None
  dataset_name: str | None = None
  test_split: str | None = None
  validation_split: str | None = None
  training_split: str | None = None
  fewshot_split: str | None = None
  fewshot_config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  num_fewshot: int = 0
  description: str = ""
  target_delimiter: str = " "
  fewshot_delimiter: str = "\n\n"
  gen_prefix: str | None = None
  doc_to_decontamination_query: str | None = None  # the text of an item that is searched in a corpus
  generation_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  metric_list: Sequence[Mapping[str, Any]] = ()
  metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  folder: str = ""  # of the file, to which paths of a user's own task are relative
  groups: tuple[str, ...] = ()  # the groups through which it was named
  means: tuple[str, ...] = ()  # those of them that report a mean over their tasks

  def metrics(self) -> list[str]:
    """Returns the names of the metrics; by default those of lm-evaluation-harness for the output type."""
    default = METRICS[self.output_type][: DEFAULTS.get(self.output_type, 2)]
    return [metric["metric"] for metric in self.metric_list] or list(default)

  def split(self) -> str:
    """Returns the split that is evaluated: test, or else validation, or else train."""
    given = (self.test_split, self.validation_split, self.training_split)
    return next((split for split in given if split), "test")

  def hash(self) -> str:
    """Returns a hash of all that decides about prompts and scores; not of where the file is."""
    fields = {key: value for key, value in dataclasses.asdict(self).items() if key not in UNHASHED}
    return hashlib.sha256(json.dumps(fields, sort_keys=True, default=dict).encode()).hexdigest()[:16]


def variants(task: TaskFile) -> list[TaskFile]:
  """Returns a task with each of its templates, its own first; their names end with @0, @1 and so on.

  Raises:
    UserError: a template has a field that templates do not have.
  """
  file = epath.Path(task.folder) / f"{task.task}.yaml"
  metadata = {key: value for key, value in task.metadata.items() if key != "templates"}
  tasks = []
  for number, fields in enumerate([{}, *task.metadata.get("templates", ())]):
    if not isinstance(fields, Mapping) or (unknown := set(map(str, fields)) - set(TEMPLATE_FIELDS)):
      known = ", ".join(TEMPLATE_FIELDS)
      raise UserError(
        f"{file}: metadata.templates has {min(unknown) if isinstance(fields, Mapping) else fields!r}; known: {known}"
      )
    tasks.append(dataclasses.replace(task, task=f"{task.task}@{number}", metadata=metadata, **fields))
    _check(tasks[-1], file)
  return tasks


def names() -> list[str]:
  """Returns the names of the tasks and groups that come with the package."""
  return sorted(path.stem for path in FOLDER.glob("*.yaml") if not path.name.startswith("_"))


def load(name: str, depth: int = 0) -> list[TaskFile]:
  """Returns the tasks of a name or a YAML file; of a group, all of its tasks.

  Raises:
    UserError: there is no such task, or its file has a field that cannot be read.
  """
  if depth > DEEPEST:
    raise UserError(f"evaluate: {name}: groups of tasks contain each other")
  file = files.expand(name)
  if file.suffix not in (".yaml", ".yml"):
    if name not in names():
      raise UserError(f"evaluate: no task or group {name!r}{did_you_mean(name, names())}; or give a YAML file")
    file = FOLDER / f"{name}.yaml"
  settings = _read(file)
  if "group" not in settings:
    return _tasks(settings, file)
  members = settings.get("task")
  if not isinstance(members, list) or not all(isinstance(member, str) for member in members):
    raise UserError(f"{file}: the `task` of a group must be a list of names of tasks")
  tasks = []
  for member in members:
    beside = file.parent / f"{member}.yaml"
    tasks += load(str(beside) if beside.exists() else member, depth + 1)
  group = (str(settings["group"]),)
  means = group if settings.get("aggregate_metric_list") else ()
  return [dataclasses.replace(task, groups=group + task.groups, means=means + task.means) for task in tasks]


def _tasks(settings: dict[str, Any], file: epath.Path) -> list[TaskFile]:
  """Returns the task of a file, or one for each of the `each` values in its metadata, which {each} stands for."""
  metadata = settings.get("metadata") or {}
  if not isinstance(metadata, Mapping):
    raise UserError(f"{file}: metadata must be fields with values")
  each = metadata.get("each")
  if each is None:
    return [_task(settings, file)]
  if not isinstance(each, list):
    raise UserError(f"{file}: metadata.each must be a list, not {each!r}")
  tasks = []
  for value in each:
    filled = files.parse_json(json.dumps(settings).replace("{each}", str(value)))
    filled["metadata"] = {key: item for key, item in filled["metadata"].items() if key != "each"}
    tasks.append(_task(filled, file))
  return tasks


def _task(settings: dict[str, Any], file: epath.Path) -> TaskFile:
  known = {field.name for field in dataclasses.fields(TaskFile)} - {"folder", "groups", "means"}
  for key, value in settings.items():
    if key not in known and key not in IGNORED and value is not None:
      raise UserError(f"{file}: the field {key!r} is not supported{did_you_mean(key, known)}")
  given = {key: value for key, value in settings.items() if key in known and value is not None}
  for key in ("task", "dataset_path", "dataset_kwargs", "doc_to_target"):
    if key not in given:
      raise UserError(f"{file}: the field {key!r} is missing")
  task = TaskFile(**given, folder=str(file.parent))
  _check(task, file)
  return task


def _check(task: TaskFile, file: epath.Path) -> None:
  text = {"task": str, "dataset_path": str, "doc_to_text": str | int, "description": str, "target_delimiter": str,
          "fewshot_delimiter": str, "num_fewshot": int, "dataset_kwargs": Mapping, "metadata": Mapping,
          "fewshot_config": Mapping, "generation_kwargs": Mapping, "metric_list": list | tuple,
          "doc_to_target": str | int | list, "doc_to_choice": str | list | Mapping | None}  # fmt: skip
  for key, kind in text.items():
    if not isinstance(getattr(task, key), kind):
      raise UserError(f"{file}: {key} cannot be {getattr(task, key)!r}")
  if task.output_type not in OUTPUT_TYPES:
    raise UserError(f"{file}: output_type is one of {', '.join(OUTPUT_TYPES)}, not {task.output_type!r}")
  if task.dataset_path not in DATASETS:
    raise UserError(
      f"{file}: dataset_path {task.dataset_path!r}: only local files are read; write dataset_path json, csv or text, "
      "and their paths in dataset_kwargs: {data_files: {test: file.jsonl}}"
    )
  if unknown := set(map(str, task.dataset_kwargs)) - {"data_files", "field", "sample_by"}:
    raise UserError(f"{file}: dataset_kwargs.{min(unknown)} is not supported; known: data_files, field, sample_by")
  if (cut := task.dataset_kwargs.get("sample_by", "line")) not in ("line", "paragraph", "document"):
    raise UserError(f"{file}: dataset_kwargs.sample_by of text is line, paragraph or document, not {cut!r}")
  if task.output_type == "multiple_choice" and task.doc_to_choice is None:
    raise UserError(f"{file}: a multiple_choice task needs doc_to_choice")
  if unknown := set(task.fewshot_config) - {"sampler"}:
    raise UserError(f"{file}: fewshot_config.{min(unknown)} is not supported; known: sampler")
  if task.fewshot_config.get("sampler", "default") not in ("default", "first_n"):
    raise UserError(f"{file}: fewshot_config.sampler is default or first_n, not {task.fewshot_config['sampler']!r}")
  for metric in task.metric_list:
    if not isinstance(metric, Mapping):
      raise UserError(f"{file}: metric_list is a list of fields, such as [{{metric: acc}}], not of {metric!r}")
    name = metric.get("metric")
    if name not in METRICS[task.output_type]:
      known = METRICS[task.output_type]
      raise UserError(f"{file}: metric {name!r} of {task.output_type}{did_you_mean(str(name), known)}")
    if unknown := set(map(str, metric)) - set(METRIC_FIELDS):
      raise UserError(f"{file}: metric {name}: the option {min(unknown)!r} is not supported")
  if unknown := set(map(str, task.generation_kwargs)) - set(GENERATION):
    raise UserError(f"{file}: generation_kwargs.{min(unknown)} is not supported; known: {', '.join(GENERATION)}")
  check_task(task, MAX_TOKENS, file)


def _read(file: epath.Path, depth: int = 0) -> dict[str, Any]:
  """Returns the fields of a YAML file, those of the file that it includes first."""
  if depth > DEEPEST:
    raise UserError(f"{file}: files include each other")
  yaml = importlib.import_module("yaml")

  class Loader(yaml.SafeLoader):  # type: ignore[name-defined]
    pass

  def refuse(loader, node):
    raise UserError(f"{file}: {node.tag} {node.value}: tasks may not run Python code; write a Jinja template instead")

  Loader.add_constructor("!function", refuse)
  try:
    settings = yaml.load(files.read_text(file), Loader)  # noqa: S506  # a SafeLoader
  except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:  # dates and numbers that are none
    raise UserError(f"{file} is not YAML that can be read: {reason(error)}") from error
  left, parts = LARGEST, [settings]
  while parts and (left := left - 1):  # aliases may stand for more than there is memory for
    part = parts.pop()
    parts += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
  if not left:
    raise UserError(f"{file} has more than {LARGEST:,} values")
  if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
    raise UserError(f"{file} has no fields of a task")
  include = settings.pop("include", None)
  if include is None:
    return settings
  if not isinstance(include, str):
    raise UserError(f"{file}: include must be the path of one file")
  return _read(file.parent / include, depth + 1) | settings
