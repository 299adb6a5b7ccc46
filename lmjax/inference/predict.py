"""Predictions of a trained task for new texts."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from lmjax.data.batch import Batch
from lmjax.data.objectives.arrange import Arrangement, pad
from lmjax.data.objectives.labelled import Labelled
from lmjax.data.packer import Row
from lmjax.evals.row_scores import row_scores
from lmjax.storage.base import LoadedModel
from lmjax.tasks.classification import Classification
from lmjax.tasks.encode import Encode
from lmjax.tasks.tagging import Tagging
from lmjax.utils.errors import UserError, reason
from lmjax.utils.files import parse_json

STEP = 16  # lengths are padded to a multiple of it, so that few shapes are compiled


class Text(NamedTuple):
  """What is predicted for: a string, or a pair of them."""

  text: str
  other: str | None = None


class Predictor(NamedTuple):
  """A loaded model with the names of its labels; none predicts a number."""

  loaded: LoadedModel
  task: Any
  arrangement: Arrangement
  labels: tuple[str, ...]
  by_word: bool = False  # whether each word has a label

  def __call__(self, texts: Sequence[Text], batch: int = 32) -> list[dict[str, Any]]:
    """Returns the prediction of each: `label`, its `probability` and all `probabilities`, or a `value`.

    For a task that tags words, those of the text, which spaces separate: `words`, `tags` and their `probabilities`.
    """
    if self.by_word:
      tagged = [self.arrangement.words(text.text.split()) for text in texts]
      rows, places = [row for row, _ in tagged], [first for _, first in tagged]
    else:
      rows, places = [self.arrangement(*text) for text in texts], [[] for _ in texts]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["inputs"]))
    groups = [order[i : i + batch] for i in range(0, len(order), batch)]
    batches = [_batch([rows[i] for i in group], batch, self.arrangement.length) for group in groups]
    outputs: list[dict[str, Any]] = [{}] * len(rows)
    scores = row_scores(self.task, self.loaded.layout, batches)(self.loaded.params)
    for group, rows_of_group in zip(groups, scores, strict=True):
      for i, row in zip(group, rows_of_group, strict=False):
        outputs[i] = self._tags(texts[i], row, places[i]) if self.by_word else self._describe(row)
    return outputs

  def _tags(self, text: Text, scores_LxC: np.ndarray, places: list[int]) -> dict[str, Any]:
    """Returns the tag of each word, by its first token; a word that is cut off, or has no token, has the first tag."""
    probs = [_probs(scores_LxC[place]) if place >= 0 else np.eye(len(self.labels))[0] for place in places]
    return {
      "words": text.text.split(),
      "tags": [self.labels[int(p.argmax())] for p in probs],
      "probabilities": [float(p.max()) for p in probs],
    }

  def _describe(self, scores: np.ndarray) -> dict[str, Any]:
    if not self.labels:
      return {"value": float(scores[0])}
    probs = _probs(scores)
    best = int(probs.argmax())
    return {
      "label": self.labels[best],
      "probability": float(probs[best]),
      "probabilities": dict(zip(self.labels, map(float, probs), strict=True)),
    }


def _probs(scores: np.ndarray) -> np.ndarray:
  shifted = np.exp(scores - scores.max())
  return shifted / shifted.sum()


def _batch(rows: list[Row], batch: int, length: int) -> Batch:
  """Returns a batch of rows of the same length; the first is repeated where there are fewer."""
  longest = max(len(np.asarray(row["inputs"])) for row in rows)
  width = max(min(-(-longest // STEP) * STEP, length), longest)
  padded = [pad(row, width) for row in rows + rows[:1] * (batch - len(rows))]
  return {key: np.stack([row[key] for row in padded]) for key in padded[0]}


def make_predictor(loaded: LoadedModel, path: epath.PathLike) -> Predictor:
  """Returns the predictor of a run of `Classification` or `Tagging`, or of a folder with such a classifier.

  Raises:
    UserError: the model is for another task.
  """
  task, kind = loaded.task, loaded.task.model.kind
  if isinstance(task, Classification | Tagging):
    data = loaded.run.data
    assert isinstance(data, Labelled)
    return Predictor(loaded, task, data.arrangement(loaded.tokenizer), task.labels, isinstance(task, Tagging))
  if isinstance(task, Encode) and task.classifier and task.labels in ("sequence", "tokens"):
    classes = task.classifier.classes
    names = loaded.settings.get("id2label") or {}
    labels = tuple(str(names.get(str(i), f"LABEL_{i}")) for i in range(classes)) if classes > 1 else ()
    return Predictor(loaded, task, Arrangement(kind, loaded.tokenizer, loaded.length), labels, task.labels == "tokens")
  raise UserError(f"predict: {path} does not classify: its task is {type(task).__name__}")


def read_texts(path: str, text: str = "text", other: str = "other") -> Iterator[Text]:
  """Yields the texts in each line of a file: JSON with the keys `text` and `other`, or both with a tab between.

  Raises:
    UserError: the file cannot be read, or a line of it.
  """
  try:
    lines = epath.Path(path).read_bytes().decode("utf-8-sig").splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"predict: cannot read {path}: {reason(error)}") from error
  for number, line in enumerate(lines, 1):
    yield _parse(line, path.endswith((".jsonl", ".json")), f"predict: {path}:{number}", text, other)


def _parse(line: str, is_json: bool, where: str, text: str, other: str) -> Text:
  if not is_json:
    first, tab, second = line.partition("\t")
    values: Iterable[Any] = (first, second if tab else None)
  else:
    try:
      record = parse_json(line)
    except ValueError as error:
      raise UserError(f"{where} {error}") from error
    values = record.get(text), record.get(other)
  first, second = values
  if not isinstance(first, str) or not first.strip() or (second is not None and not isinstance(second, str)):
    raise UserError(f"{where} has no text{f' under {text!r}' if is_json else ''}")
  return Text(first, second)


def to_records(texts: Sequence[Text], predictions: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
  """Yields each prediction with its texts."""
  for text, prediction in zip(texts, predictions, strict=True):
    yield {key: value for key, value in text._asdict().items() if value is not None} | prediction
