"""Predictions for the test sets of GLUE, in the files that its server takes (Wang et al., 2018, gluebenchmark.com)."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from etils import epath

from lmjax.data.sources.base import BadRecord
from lmjax.data.sources.labelled import Table
from lmjax.inference.predict import Text
from lmjax.utils.errors import UserError


class Test(NamedTuple):
  """A test set: the name of the file to submit, its columns, and {label of a run: label to submit}; none of numbers."""

  file: str
  labels: dict[str, str]
  text: str = "sentence"
  other: str = ""
  index: str = "index"


def _numbered(*labels: str) -> dict[str, str]:
  """Returns the number to submit of each label by its name, and by the number itself."""
  return {label: str(i) for i, name in enumerate(labels) for label in (name, str(i))}


PAIR = ("sentence1", "sentence2")
ENTAILMENT = {name: name for name in ("entailment", "not_entailment")}
INFERENCE = {name: name for name in ("entailment", "neutral", "contradiction")}
TESTS = {
  "cola": Test("CoLA.tsv", _numbered("unacceptable", "acceptable")),
  "sst2": Test("SST-2.tsv", _numbered("negative", "positive")),
  "mrpc": Test("MRPC.tsv", _numbered("not_equivalent", "equivalent"), "#1 String", "#2 String"),
  "stsb": Test("STS-B.tsv", {}, *PAIR),
  "qqp": Test("QQP.tsv", _numbered("not_duplicate", "duplicate"), "question1", "question2", "id"),
  "mnli": Test("MNLI-m.tsv", INFERENCE, *PAIR),
  "mnli_mismatched": Test("MNLI-mm.tsv", INFERENCE, *PAIR),
  "qnli": Test("QNLI.tsv", ENTAILMENT, "question", "sentence"),
  "rte": Test("RTE.tsv", ENTAILMENT, *PAIR),
  "wnli": Test("WNLI.tsv", _numbered("not_entailment", "entailment"), *PAIR),
  "ax": Test("AX.tsv", INFERENCE, *PAIR),
}
LOWEST, HIGHEST = 0.0, 5.0  # scores of STS-B


def read_test(path: epath.PathLike, task: str) -> tuple[list[str], list[Text]]:
  """Returns the index and the texts of every row of a test set's file, as GLUE has it.

  Raises:
    UserError: a column is missing, a row cannot be read, or two have the same index: no row may be left out.
  """
  test = TESTS[task]
  table = Table(str(path), test.text, test.index, test.other, form="tsv")
  numbers, texts = [], []
  for row in map(table.__getitem__, range(len(table))):
    if isinstance(row, BadRecord):
      raise UserError(f"predict: {row.where} {row.why}")
    if not row.label.isdecimal():
      raise UserError(f"predict: {row.where} has the index {row.label!r}, not a number")
    numbers.append(row.label)
    texts.append(Text(row.text, row.other))
  if len(set(map(int, numbers))) < len(numbers):
    raise UserError(f"predict: {path} has an index twice")
  return numbers, texts


def submission(task: str, numbers: Sequence[str], predictions: Sequence[dict[str, Any]]) -> Iterator[str]:
  """Yields the lines of the file to submit: `index` and `prediction`, in the labels of GLUE.

  Raises:
    UserError: the model has other labels.
  """
  yield "index\tprediction\n"
  for number, prediction in zip(numbers, predictions, strict=True):
    yield f"{number}\t{_spelled(task, prediction)}\n"


def _spelled(task: str, prediction: dict[str, Any]) -> str:
  labels = TESTS[task].labels
  if not labels and "value" in prediction:
    return f"{min(max(prediction['value'], LOWEST), HIGHEST):.3f}"
  if prediction.get("label") not in labels:
    wanted = f"the labels {', '.join(labels)}" if labels else "a number"
    raise UserError(
      f"predict: {task} needs {wanted}, and the model has predicted {prediction.get('label', 'no label')}"
    )
  return labels[prediction["label"]]
