"""What values the fields of a task file may have, of which others would be found only after the model's work."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lmjax.utils.errors import UserError

LONGEST = 200  # characters of a task's name, which is that of a file
TAKEN = ("contamination", "corpus", "windows", "results")  # files in the folder of results


def is_text(value: Any) -> bool:
  """Returns whether a value is a string that can be written as UTF-8."""
  return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def is_texts(value: Any) -> bool:
  """Returns whether a value is a list of strings."""
  return isinstance(value, list | tuple) and all(map(is_text, value))


def _is_count(value: Any) -> bool:
  return type(value) is int and value > 0


def _is_number(value: Any) -> bool:
  return type(value) in (int, float) and math.isfinite(value)


def _are_templates(value: Any) -> bool:
  return isinstance(value, Mapping) and all(map(is_text, [*value, *value.values()]))


def _compares(value: Any) -> bool:
  return isinstance(value, Mapping) and set(value) == {"field", "first", "second"} and is_text(value["field"])


def _is_name(value: Any) -> bool:
  plain = is_text(value) and re.fullmatch(r"[^/\\\0-\x1f.][^/\\\0-\x1f]*", value)
  return bool(plain) and len(value) <= LONGEST and value not in TAKEN


def _are_files(value: Any) -> bool:
  parts = value.values() if isinstance(value, Mapping) else [value]
  return all(is_text(part) or is_texts(part) for part in parts) and bool(parts)


Check = tuple[Callable[[Any], bool], str]
TEXT: Check = (is_text, "a string")
TEXTS: Check = (is_texts, "a list of strings")
METADATA: dict[str, Check] = {
  "labels": TEXT, "pair": TEXT, "file": TEXT, "shots_by": TEXT, "report_by": TEXTS, "columns": TEXTS,
  "delimiter": (lambda value: is_text(value) and len(value) == 1 and value not in '\r\n"', "one character"),
  "fields": (_are_templates, "templates by the names of fields"),
  "compare": (_compares, "{field, first, second}"),
  "templates": (lambda value: isinstance(value, list), "a list of fields"),
  "answer": (lambda value: value == "number", "number"),
  "prompts": (_is_count, "a number of at least 1"),
}  # fmt: skip
FIELDS: dict[str, Check] = {
  "task": (_is_name, f"a name of up to {LONGEST} characters without / that does not start with a dot, nor one of "
           f"{', '.join(TAKEN)}"),
  "num_fewshot": (lambda value: type(value) is int and value >= 0, "a whole number of at least 0"),
  "test_split": TEXT, "validation_split": TEXT, "training_split": TEXT, "fewshot_split": TEXT, "gen_prefix": TEXT,
  "doc_to_decontamination_query": TEXT, "description": TEXT, "target_delimiter": TEXT, "fewshot_delimiter": TEXT,
}  # fmt: skip
GENERATION: dict[str, Check] = {
  "until": (lambda value: is_text(value) or is_texts(value), "a string or a list of strings"),
  "do_sample": (lambda value: isinstance(value, bool), "true or false"),
  "temperature": (lambda value: _is_number(value) and value >= 0, "a number of at least 0"),
  "top_k": (lambda value: type(value) is int and value >= 0, "a whole number of at least 0"),
  "top_p": (lambda value: _is_number(value) and 0 < value <= 1, "a number above 0 and at most 1"),
}


def check_task(task: Any, tokens: Sequence[str], where: Any) -> None:
  """Checks the values of a task's fields.

  Args:
    tokens: the names of the setting of how many tokens are generated.
    where: the file, for messages.

  Raises:
    UserError: a value that its field cannot have.
  """
  files = task.dataset_kwargs.get("data_files")
  if not _are_files(files):
    raise UserError(f"{where}: dataset_kwargs.data_files must be paths, not {files!r}")
  fields = {key: value for key in FIELDS if (value := getattr(task, key)) is not None}
  _check(where, "", FIELDS, fields)
  _check(where, "metadata.", METADATA, task.metadata)
  counts = dict.fromkeys(tokens, (_is_count, "a whole number of at least 1"))
  given = {key: value for key, value in task.generation_kwargs.items() if value is not None}
  _check(where, "generation_kwargs.", GENERATION | counts, given)
  if "acc_pair" in task.metrics() and "pair" not in task.metadata:
    raise UserError(f"{where}: the metric acc_pair needs metadata.pair, the field that the items of a pair share")
  for metric in task.metric_list:
    patterns = metric.get("regexes_to_ignore", ())
    try:
      if not is_texts(patterns):
        raise UserError(f"{where}: regexes_to_ignore must be a list of strings, not {patterns!r}")
      for pattern in patterns:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
      raise UserError(f"{where}: regexes_to_ignore has {pattern!r}: {error}") from error


def _check(where: Any, prefix: str, checks: Mapping[str, Check], values: Mapping[str, Any]) -> None:
  for key, value in values.items():
    valid, wanted = checks.get(key, (lambda value: True, ""))
    if not valid(value):
      raise UserError(f"{where}: {prefix}{key} must be {wanted}, not {value!r}")


def check_names(tasks: Sequence[Any]) -> list[Any]:
  """Returns tasks without those that are there twice.

  Raises:
    UserError: different tasks have the same name, which would be the same file of results.
  """
  by_name: dict[str, Any] = {}
  for task in tasks:
    known = by_name.setdefault(task.task.casefold(), task)
    if known.task != task.task or known.hash() != task.hash():
      raise UserError(f"evaluate: two tasks are called {task.task!r}, in {known.folder} and {task.folder}; rename one")
  return list(by_name.values())
