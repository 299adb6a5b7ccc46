"""The items of a task: its data, rendered by the task's templates into contexts and continuations."""

import ast
import csv
import dataclasses
import functools
import importlib
import io
import os
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from lmjax.data.sources.gzipped import unzip
from lmjax.data.sources.paths import expand_paths
from lmjax.evals.suites import beliefs
from lmjax.evals.suites.task_files import FOLDER, TaskFile
from lmjax.utils import files
from lmjax.utils.errors import UserError, reason

LARGEST = 10**7  # characters or bits of what a template makes by a product or a power
FEWSHOT_SEED = 1234  # of lm-evaluation-harness

Doc = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Item:
  """One item: what the model reads, and what is right.

  contexts, continuations: of each choice; one where there is nothing to choose. choices: as the task writes them,
  whose lengths normalise likelihoods. target: the indices of the right choices, or the right answers.
  """

  number: int
  contexts: tuple[str, ...]
  continuations: tuple[str, ...]
  choices: tuple[str, ...]
  target: tuple[Any, ...]
  doc: Doc


@functools.cache
def _environment() -> Any:
  """Returns the sandbox in which templates are rendered, with the settings of lm-evaluation-harness."""
  try:
    jinja2, sandbox = importlib.import_module("jinja2"), importlib.import_module("jinja2.sandbox")
  except ImportError as error:
    raise UserError("evaluation suites need the package jinja2: pip install 'lmjax[eval]'") from error

  class Environment(sandbox.ImmutableSandboxedEnvironment):  # type: ignore[name-defined]
    """In which neither a product nor a power makes more than there is memory for."""

    intercepted_binops = frozenset(("*", "**"))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
      texts, numbers = ([v for v in (left, right) if isinstance(v, kind)] for kind in (str | list | tuple, int))
      size = len(texts[0]) * numbers[0] if texts and numbers else 0
      if operator == "**" and len(numbers) == 2:
        size = left.bit_length() * right
      if size > LARGEST:
        raise ValueError(f"the result of {operator} has a size of more than {LARGEST:,}")
      return super().call_binop(context, operator, left, right)

  return Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)


@functools.lru_cache(4096)
def _template(text: str) -> Any:
  return _environment().from_string(text)


def render(task: TaskFile, field: str, text: str, doc: Doc) -> str:
  """Returns what a template makes of a document; `field` names it in an error.

  Raises:
    UserError: the template is malformed, or does not fit the document.
  """
  jinja2 = importlib.import_module("jinja2") if _environment() else None
  try:
    return str(_template(text).render(**doc))
  except (jinja2.TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError) as error:
    raise UserError(f"task {task.task}: {field} {text!r}: {reason(error)}") from error


def without_literals(template: str) -> str:
  """Returns a template with a space for each text between its expressions; the name of a field stays."""
  if "{" not in template:
    return template
  try:
    tokens = list(_environment().lex(template))
  except importlib.import_module("jinja2").TemplateError:
    return template  # rendering it says what is wrong
  return "".join(" " if kind == "data" else value for _, kind, value in tokens)


class Renderer:
  """Renders the templates of one task."""

  def __init__(self, task: TaskFile):
    self.task = task

  def render(self, field: str, doc: Doc) -> str:
    """Returns what a template makes of a document."""
    return render(self.task, field, getattr(self.task, field), doc)

  def text(self, doc: Doc) -> str | int:
    """Returns the context, or the index of the right context where the choices are contexts."""
    text = self.task.doc_to_text
    if isinstance(text, int):
      return text
    value = doc[text] if text in doc else self.render("doc_to_text", doc)
    if isinstance(value, str) and value.isdigit() and self.task.doc_to_choice is not None:
      return int(value)
    return value

  def target(self, doc: Doc) -> Any:
    """Returns the right answer: an index, a string, or a list of them."""
    target = self.task.doc_to_target
    if isinstance(target, int | list):
      return target
    if target in doc:
      return doc[target]
    value = self.render("doc_to_target", doc)
    if value.isdigit() and self.task.doc_to_choice is not None:
      return int(value)
    if len(value) >= 2 and value[0] == "[" and value[-1] == "]":
      try:
        return ast.literal_eval(value)
      except (SyntaxError, ValueError):
        return value
    return value

  def choices(self, doc: Doc) -> list[str]:
    """Returns the choices."""
    choices = self.task.doc_to_choice
    if isinstance(choices, Mapping):
      choices = list(choices.values())
    if isinstance(choices, str):
      if choices in doc:
        choices = doc[choices]
      else:
        value = self.render("doc_to_choice", doc)
        try:
          choices = ast.literal_eval(value)
        except (SyntaxError, ValueError) as error:
          raise UserError(f"task {self.task.task}: doc_to_choice makes no list: {value!r}") from error
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, str) for choice in choices):
      raise UserError(f"task {self.task.task}: doc_to_choice makes no list of strings: {choices!r}")
    return choices


def make_items(task: TaskFile, data: str | None, shots: int | None = None, limit: int | None = None) -> list[Item]:
  """Returns the items of a task, the first `limit`.

  Args:
    data: the folder of the data; None for the variable LMJAX_DATA.
    shots: examples before each item, default those of the task; drawn as lm-evaluation-harness draws them. An item is
      never an example of itself; there, it may be where the task names no `fewshot_split`.

  Raises:
    UserError: the data cannot be read, or does not fit the templates.
  """
  docs = read_docs(task, task.split(), data)
  shots = task.num_fewshot if shots is None else shots
  split = task.fewshot_split or task.training_split or task.validation_split or task.split()
  pool = [] if not shots else docs if split == task.split() else read_docs(task, split, data)
  if len(pool) < shots + (split == task.split() and shots > 0):
    raise UserError(f"task {task.task}: {shots} shots need more than the {len(pool)} examples of its split {split}")
  renderer, rng = Renderer(task), random.Random(FEWSHOT_SEED)
  items = []
  for number, doc in enumerate(docs[:limit]):
    examples = _examples(task, pool, shots, doc, doc if split == task.split() else None, rng) if shots else []
    items.append(_item(renderer, number, doc, examples))
    try:
      "".join(map(str, [*items[-1].contexts, *items[-1].continuations, *items[-1].target])).encode()
    except UnicodeEncodeError as error:
      raise UserError(f"task {task.task}: item {number} has text that is not UTF-8: half a surrogate pair") from error
  return items


def _examples(
  task: TaskFile, pool: list[Doc], shots: int, doc: Doc, own: Doc | None, rng: random.Random
) -> Sequence[Doc]:
  if field := task.metadata.get("shots_by"):
    pool = [other for other in pool if other.get(field) == doc.get(field)]
    if len(pool) < shots + (own is not None):
      raise UserError(f"task {task.task}: {shots} shots need more examples with the {field} {doc.get(field)!r}")
  if task.fewshot_config.get("sampler") == "first_n":
    return [doc for doc in pool if doc != own][:shots]
  drawn = rng.sample(pool, shots if own is None else shots + 1)
  chosen = [doc for doc in drawn if doc != own][:shots]
  return chosen if len(chosen) == shots else rng.sample([doc for doc in pool if doc != own], shots)


def _item(renderer: Renderer, number: int, doc: Doc, examples: Sequence[Doc]) -> Item:
  task = renderer.task
  before = renderer.render("description", doc) if task.description else ""
  before += "".join(_example(renderer, example) for example in examples)
  text, target = renderer.text(doc), renderer.target(doc)
  if isinstance(target, list) and not target:
    raise UserError(f"task {task.task}: doc_to_target gives no right answer of item {number}")
  prefix = task.gen_prefix or ""
  if prefix:
    prefix = renderer.render("gen_prefix", doc)
  if task.output_type == "multiple_choice":
    choices = renderer.choices(doc)
    if isinstance(text, int):  # the choices are contexts of one continuation
      contexts = [before + choice for choice in choices]
      continuations, right = [f"{task.target_delimiter}{target}"] * len(choices), text
    else:
      contexts = [before + _join(text, prefix, task.target_delimiter)] * len(choices)
      continuations, right = [task.target_delimiter + choice for choice in choices], target
    indices = tuple(_index(task, one, choices, number) for one in (right if isinstance(right, list) else [right]))
    return Item(number, tuple(contexts), tuple(continuations), tuple(choices), indices, doc)
  if not isinstance(text, str):
    raise UserError(f"task {task.task}: doc_to_text makes no text of item {number}: {text!r}")
  context = before + _join(text, prefix, task.target_delimiter)
  answers = tuple(map(str, target)) if isinstance(target, list) else (str(target),)
  continuation = "" if task.output_type == "generate_until" else answers[0]
  return Item(number, (context,), (continuation,), (), answers, doc)


def _example(renderer: Renderer, doc: Doc) -> str:
  """Returns an example with its answer, as lm-evaluation-harness writes it."""
  task, text, answer = renderer.task, renderer.text(doc), renderer.target(doc)
  if task.doc_to_choice is not None:
    choices = renderer.choices(doc)
    text, answer = (
      choices[_index(task, value, choices, "of an example")] if isinstance(value, int) else value
      for value in (text, answer)
    )
  answer = answer[0] if isinstance(answer, list) else answer
  if task.gen_prefix:
    prefix = renderer.render("gen_prefix", doc)
    return (
      _join(str(text), prefix, task.target_delimiter)
      + _join(prefix, str(answer), " ")[len(prefix) :]
      + (task.fewshot_delimiter)
    )
  return f"{text}{task.target_delimiter}{answer}{task.fewshot_delimiter}"


def _join(first: str, second: str, delimiter: str) -> str:
  """Returns two strings with a delimiter between them, unless one is empty or white space is there already."""
  if not first or not second or first[-1].isspace() or second[0].isspace():
    return first + second
  return first + delimiter + second


def _index(task: TaskFile, right: Any, choices: list[str], number: int | str) -> int:
  if isinstance(right, str) and right in choices:
    return choices.index(right)
  if isinstance(right, bool) or not isinstance(right, int) or not 0 <= right < len(choices):
    raise UserError(f"task {task.task}: the target of item {number} is {right!r}, not one of its choices {choices}")
  return right


def data_folder(data: str | None) -> str | None:
  """Returns the folder of the data: the given one, or the variable LMJAX_DATA."""
  return data or os.environ.get("LMJAX_DATA")


def read_docs(task: TaskFile, split: str, data: str | None) -> list[Doc]:
  """Returns the documents of a split.

  Raises:
    UserError: there is no such split, or a file cannot be read.
  """
  if task.dataset_path == "corpus":
    return list(task.dataset_kwargs["prompts"])  # see inference/suite.py
  given = task.dataset_kwargs["data_files"]
  if isinstance(given, Mapping):
    if split not in given:
      raise UserError(f"task {task.task}: data_files has no split {split!r}; it has {', '.join(map(str, given))}")
    given = given[split]
  docs: list[Doc] = []
  for name in [given] if isinstance(given, str) else given:
    if task.dataset_path == "beliefs" and name == "stories":
      docs += beliefs.stories()
      continue
    for path in _paths(task, name, data):
      own = _read(task, path)
      if field := task.metadata.get("file"):
        own = [doc | {field: re.sub(r"_(test|dev|val|validation|train)$", "", path.stem)} for doc in own]
      docs += own
  if labels := task.metadata.get("labels"):
    lines = _content(_path(task, labels, data)).decode().split()
    if len(lines) != len(docs):
      raise UserError(f"task {task.task}: {labels} has {len(lines)} labels, but the data has {len(docs)} items")
    docs = [doc | {"label": int(line) if line.isdigit() else line} for doc, line in zip(docs, lines, strict=True)]
  if not docs:
    raise UserError(f"task {task.task}: its data has no items")
  if fields := task.metadata.get("fields"):
    docs = [doc | {name: render(task, f"fields.{name}", text, doc) for name, text in fields.items()} for doc in docs]
  return docs


def _path(task: TaskFile, name: str, data: str | None) -> epath.Path:
  path, folder = files.expand(name), data_folder(data)
  if path.is_absolute():
    return path
  if epath.Path(task.folder) != FOLDER and (epath.Path(task.folder) / path).exists():
    return epath.Path(task.folder) / path
  if not folder:
    raise UserError(f"task {task.task}: its data is {name} in a folder; name the folder with --data or LMJAX_DATA")
  return files.expand(folder) / path


def _paths(task: TaskFile, name: str, data: str | None) -> list[epath.Path]:
  """Returns the files that a path or a glob matches."""
  is_glob, folder = any(mark in name for mark in "*?["), epath.Path(task.folder)
  if is_glob and folder != FOLDER and not epath.Path(name).is_absolute() and (own := sorted(folder.glob(name))):
    return own
  path = _path(task, name, data)
  if path.exists() or not is_glob:
    return [path]
  try:
    return expand_paths(str(path))
  except UserError as error:
    raise UserError(f"task {task.task}: no file matches {str(path)!r}") from error


def _content(file: epath.Path) -> bytes:
  return unzip(file) if file.suffix == ".gz" else files.read_bytes(file)


def _read(task: TaskFile, file: epath.Path) -> list[Doc]:
  try:
    text = _content(file).decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise UserError(f"{file} is not UTF-8") from error
  if task.dataset_path == "beliefs":
    try:
      return beliefs.published(file.name, text)
    except (ValueError, IndexError) as error:
      raise UserError(f"{file} is not a set of beliefs that can be read: {reason(error)}") from error
  if task.dataset_path == "csv":
    return _rows(task, file, text)
  if task.dataset_path == "text":
    cut = {"line": "\n", "paragraph": "\n\n"}.get(task.dataset_kwargs.get("sample_by", "line"))
    parts = text.removesuffix("\n").split(cut) if cut else [text]
    return [{"text": part} for part in parts if part.strip()]
  if (field := task.dataset_kwargs.get("field")) is not None:
    try:
      return [dict(doc) for doc in files.parse_json(text)[field]]
    except (ValueError, KeyError, TypeError) as error:
      raise UserError(f"{file}: has no list of objects {field!r}: {reason(error)}") from error
  docs = []
  for number, line in enumerate(text.split("\n"), 1):
    if line.strip():
      try:
        docs.append(files.parse_json(line))
      except ValueError as error:
        raise UserError(f"{file}:{number} {error}") from error
  return docs


def _rows(task: TaskFile, file: epath.Path, text: str) -> list[Doc]:
  """Returns the rows of a CSV file by the names of their columns."""
  columns, docs = task.metadata.get("columns"), []
  reader = csv.reader(io.StringIO(text, newline=""), delimiter=task.metadata.get("delimiter", ","))
  try:
    for row in reader:
      columns = columns or row
      if row and columns is not row:
        if len(row) != len(columns):
          raise UserError(f"{file}:{reader.line_num} has {len(row)} fields, not the {len(columns)} of {columns}")
        docs.append({name: value for name, value in zip(columns, row, strict=True) if name})  # a number has no name
  except csv.Error as error:
    raise UserError(f"{file}:{reader.line_num} cannot be read: {error}") from error
  return docs
