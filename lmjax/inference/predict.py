"""Predictions of a trained task for new texts."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from lmjax.data.batch import Batch
from lmjax.data.objectives.arrange import Arrangement, pad
from lmjax.data.objectives.spans import Spans
from lmjax.data.packer import Row
from lmjax.evals.answers import best_answer
from lmjax.evals.row_scores import row_scores
from lmjax.inference.progress import tracked
from lmjax.storage.base import LoadedModel
from lmjax.tasks.downstream import Downstream
from lmjax.tasks.encode import Encode
from lmjax.tasks.ranking import Ranking
from lmjax.tasks.retrieval import Retrieval
from lmjax.tasks.tagging import Tagging
from lmjax.utils.errors import UserError
from lmjax.utils.files import parse_json, read_text

STEP = 16  # lengths are padded to a multiple of it, so that few shapes are compiled
OUTSIDE = "O"  # the tag of words outside of entities
LONGEST = 30  # tokens of an answer


class Text(NamedTuple):
  """What is predicted for: a string, a pair of them, or one with choices."""

  text: str
  other: str | None = None
  choices: tuple[str, ...] = ()


class Predictor(NamedTuple):
  """A loaded model and what its head scores: `sequence`, `tokens`, `span` or `choice` as in `tasks.encode.Encode`.

  labels: the names of the classes; without them, a sequence has a number. spans: how questions are arranged.
  """

  loaded: LoadedModel
  head: str
  arrangement: Arrangement
  labels: tuple[str, ...] = ()
  spans: Spans | None = None

  def __call__(self, texts: Sequence[Text], batch: int = 32) -> list[dict[str, Any]]:
    """Returns the prediction of each.

    For a sequence: `label`, its `probability` and all `probabilities`, or a `value`. For words, those of the text that
    spaces separate: `words`, `tags` and their `probabilities`. For a question with its paragraph as the other text:
    `answer`, the character where it starts, and its `margin` over no answer, in scores. Of choices: the `label`, which
    is the number of the best from 0, its text as `choice`, its `probability` and all `probabilities`.

    Raises:
      UserError: a question has no paragraph or no choices.
    """
    if self.head == "choice":
      return self._rank(texts, batch)
    if self.head == "span":
      return self._answers(texts, batch)
    if self.head == "tokens":
      words = [text.text.split() for text in texts]
      made = [self.arrangement.words(own) for own in words]
      scores = self._scores([row for row, _ in made], batch)
      return [self._tags(*item) for item in zip(words, scores, (places for _, places in made), strict=True)]
    if self.arrangement.apart and any(text.other is None for text in texts):
      raise UserError("predict: each text needs the other, with which it is compared")
    rows = [self.arrangement(text.text, text.other) for text in texts]
    return [self._describe(row) for row in self._scores(rows, batch)]

  def _scores(self, rows: list[Row], batch: int) -> list[np.ndarray]:
    """Returns the scores of each row; rows of similar length are computed together."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["inputs"]))
    groups = [order[i : i + batch] for i in range(0, len(order), batch)]
    batches = [_batch([rows[i] for i in group], batch, self.arrangement.length) for group in groups]
    outputs: list[np.ndarray] = [np.zeros(0)] * len(rows)
    scores = row_scores(self.loaded.task, self.loaded.layout, batches)(self.loaded.params)
    for group, values in tracked(zip(groups, scores, strict=True), "predict", len(groups), "batches"):
      for i, value in zip(group, values, strict=False):
        outputs[i] = value
    return outputs

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

  def _tags(self, words: list[str], scores_LxC: np.ndarray, places: list[int]) -> dict[str, Any]:
    """Returns the tag of each word, by its first token; a word that is cut off, or has no token, is outside, O."""
    outside = np.eye(len(self.labels))[self.labels.index(OUTSIDE) if OUTSIDE in self.labels else 0]
    probs = [_probs(scores_LxC[place]) if place >= 0 else outside for place in places]
    return {
      "words": words,
      "tags": [self.labels[int(p.argmax())] for p in probs],
      "probabilities": [float(p.max()) for p in probs],
    }

  def _rank(self, texts: Sequence[Text], batch: int) -> list[dict[str, Any]]:
    """Returns the best choice of each text; choices are scored apart, so that there may be any number of them."""
    choices = [text.choices or tuple((text.other or "").split("\t")) for text in texts]
    if not all(map(all, choices)):
      raise UserError("predict: each text needs its choices, in further columns or in a list under 'choices'")
    pairs = [(text.text, choice) for text, own in zip(texts, choices, strict=True) for choice in own]
    scores, outputs = iter(self._scores([self.arrangement(*pair) for pair in pairs], batch)), []
    for own in choices:
      probs = _probs(np.array([float(next(scores)[0]) for _ in own]))
      best = int(probs.argmax())
      outputs.append({"label": str(best), "choice": own[best], "probability": float(probs[best]),
                      "probabilities": list(map(float, probs))})  # fmt: skip
    return outputs

  def _answers(self, texts: Sequence[Text], batch: int) -> list[dict[str, Any]]:
    assert self.spans is not None
    if not all((text.other or "").strip() for text in texts):
      raise UserError("predict: each question needs its paragraph, as the other text")
    windows = [self.spans.windows(self.arrangement, text.text, text.other or "") for text in texts]
    scores = iter(self._scores([window.row for own in windows for window in own], batch))
    outputs = []
    for text, own in zip(texts, windows, strict=True):
      best = best_answer(text.other or "", own, [next(scores) for _ in own], LONGEST, self.spans.answerable)
      outputs.append({"answer": best.text, "start": best.start, "margin": best.margin})
    return outputs


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
  """Returns the predictor of a run of a downstream task, or of a folder whose model has such a head.

  Raises:
    UserError: the model is for another task.
  """
  task, tokenizer = loaded.task, loaded.tokenizer
  if isinstance(task, Downstream):
    data = loaded.run.data
    spans = data if isinstance(data, Spans) else None
    if isinstance(task, Ranking):
      alone = dataclasses.replace(loaded, task=dataclasses.replace(task, labels=("0",)))
      return Predictor(alone, "choice", data.arrangement(tokenizer), task.labels)
    if isinstance(task, Retrieval):
      raise UserError(f"predict: {path} gives vectors, and no label: see lmjax embed and lmjax index")
    head = "tokens" if isinstance(task, Tagging) else next(iter(task.heads()), "sequence")
    return Predictor(loaded, head, data.arrangement(tokenizer), task.labels, spans)
  if not isinstance(task, Encode) or not task.classifier:
    raise UserError(f"predict: {path} has no head that classifies: its task is {type(task).__name__}")
  classes, names = task.classifier.classes, loaded.settings.get("id2label") or {}
  labels = tuple(str(names.get(str(i), f"LABEL_{i}")) for i in range(classes)) if classes > 1 else ()
  arrangement = Arrangement(task.model.kind, tokenizer, loaded.length)
  nothing: Any = ()
  spans = Spans(nothing, nothing, loaded.length, overlap=loaded.length // 4, question_length=loaded.length // 4)
  return Predictor(loaded, task.labels, arrangement, labels, spans)


def read_texts(path: str, text: str = "text", other: str = "other") -> Iterator[Text]:
  """Yields the texts in each line of a file: JSON with the keys `text` and `other`, or both with a tab between.

  Choices are a list under `choices`, or further columns.

  Raises:
    UserError: the file cannot be read, or a line of it.
  """
  lines = read_text(path).removesuffix("\n").split("\n")
  for number, line in enumerate(lines if lines != [""] else [], 1):
    yield _parse(line.removesuffix("\r"), path.endswith((".jsonl", ".json")), f"predict: {path}:{number}", text, other)


def _parse(line: str, is_json: bool, where: str, text: str, other: str) -> Text:
  if not is_json:
    first, tab, second = line.partition("\t")
    values: Iterable[Any] = (first, second if tab else None, [])
  else:
    try:
      record = parse_json(line)
    except ValueError as error:
      raise UserError(f"{where} {error}") from error
    values = record.get(text), record.get(other), record.get("choices") or []
  first, second, choices = values
  if not isinstance(first, str) or not first.strip() or (second is not None and not isinstance(second, str)):
    raise UserError(f"{where} has no text{f' under {text!r}' if is_json else ''}")
  if not isinstance(choices, list) or not all(isinstance(choice, str) and choice.strip() for choice in choices):
    raise UserError(f"{where} has choices that are not a list of texts")
  return Text(first, second, tuple(choices))


def to_records(texts: Sequence[Text], predictions: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
  """Yields each prediction with its texts."""
  for text, prediction in zip(texts, predictions, strict=True):
    yield {key: value for key, value in text._asdict().items() if value not in (None, ())} | prediction
