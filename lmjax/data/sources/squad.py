"""Questions about paragraphs, in SQuAD's JSON format (Rajpurkar et al., 2016 and 2018; Artetxe et al., 2020)."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

from etils import epath

from lmjax.data.sources.base import BadRecord
from lmjax.data.sources.examples import Question
from lmjax.data.sources.paths import expand_paths, read_bytes
from lmjax.data.sources.splits import split_range
from lmjax.utils.errors import UserError
from lmjax.utils.files import parse_json


@dataclasses.dataclass(frozen=True)
class Squad:
  """The questions of SQuAD files, 1.1 or 2.0, by path or glob, plain or gzipped; each has its answers in the paragraph.

  A question whose answer is not the text at its offset is malformed. `is_impossible` marks one without an answer.
  split: as `:90%`, empty for all; with by_article, that part of the articles and all their questions.
  unanswerable: add, for every question, one about the next paragraph of its article that lacks the answer.
  """

  files: str | tuple[str, ...]
  split: str = ""
  by_article: bool = True
  unanswerable: bool = False

  @functools.cached_property
  def _records(self) -> list[Question | BadRecord]:
    articles = [article for path in expand_paths(self.files) for article in self._articles(path)]
    if self.by_article:
      articles = [articles[i] for i in split_range(len(articles), self.split)]
    records = [record for article in articles for record in self._questions(*article)]
    return records if self.by_article else [records[i] for i in split_range(len(records), self.split)]

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> Question | BadRecord:
    return self._records[index]

  def _articles(self, path: epath.Path) -> list[tuple[str, dict[str, Any]]]:
    try:
      articles = parse_json(bytes(read_bytes(path)))["data"]
      return [(str(path), article) for article in articles]
    except (ValueError, KeyError, TypeError) as error:
      raise UserError(f"data: {path} is not in SQuAD's format: {type(error).__name__}: {error}") from error

  def _questions(self, path: str, article: Any) -> Iterator[Question | BadRecord]:
    paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
    if not isinstance(paragraphs, list):
      yield BadRecord(path, "has an article without paragraphs")
      return
    for number, paragraph in enumerate(paragraphs):
      questions = paragraph.get("qas") if isinstance(paragraph, dict) else None
      context = paragraph.get("context") if isinstance(paragraph, dict) else None
      if not isinstance(questions, list) or not isinstance(context, str):
        yield BadRecord(path, "has a paragraph without questions or context")
        continue
      for question in questions:
        record = read_question(question, context, path)
        yield record
        if self.unanswerable and isinstance(record, Question) and record.answers:
          others = (p.get("context") for p in [*paragraphs[number + 1 :], *paragraphs[:number]] if isinstance(p, dict))
          lacks = (c for c in others if isinstance(c, str) and not any(text in c for text, _ in record.answers))
          other = next(lacks, None)
          if other is not None:
            yield Question(record.id + "-unanswerable", record.question, other, (), record.where)


def read_question(question: Any, context: str, path: str) -> Question | BadRecord:
  """Returns a question about a paragraph, or what is wrong with it."""
  if not isinstance(question, dict):
    return BadRecord(path, "has a question that is not an object")
  where = f"{path}: question {question.get('id')!r}"
  text, answers = question.get("question"), question.get("answers", [])
  if not isinstance(text, str) or not text.strip():
    return BadRecord(where, "has no text")
  if question.get("is_impossible"):
    answers = []
  elif not isinstance(answers, list) or not answers:
    return BadRecord(where, "has no answer, and is not marked as impossible")
  found_at: list[tuple[str, int]] = []
  for answer in answers:
    span, start = (answer.get("text"), answer.get("answer_start")) if isinstance(answer, dict) else (None, None)
    if not isinstance(span, str) or type(start) is not int or not span:
      return BadRecord(where, "has an answer without text or place")
    if start < 0 or context[start : start + len(span)] != span:
      return BadRecord(where, f"has the answer {span[:60]!r}, and the paragraph has another text at {start}")
    found_at.append((span, start))
  return Question(str(question.get("id")), text, context, tuple(found_at), where)
