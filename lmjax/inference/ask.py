"""Answers from an index of documents, with the numbers of the sources that they are from."""

import dataclasses
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from lmjax.data.objectives.paragraphs import Paragraphs, encode_paragraphs
from lmjax.decode.logits import Sampling
from lmjax.evals.squad_scores import normalize
from lmjax.evals.written_answers import write_answers
from lmjax.inference.chat import Chat
from lmjax.inference.predict import Predictor, Text, make_predictor
from lmjax.inference.retrieval import Hit
from lmjax.models.fusion_in_decoder import FusionInDecoder
from lmjax.storage.base import LoadedModel
from lmjax.tasks.encode import Encode
from lmjax.tasks.spans import SpanExtraction
from lmjax.utils.errors import UserError

NONE = "not in these documents"
# Of the similarity of the best chunk, below which there is no answer: see benchmarks/notes/retrieval.md.
THRESHOLD = 0.35
SYSTEM = (
  "Answer the question in a few words, from the numbered sources only, and write the number of the source after the "
  f"answer, as [1]. If the sources do not answer it, write: {NONE}."
)
NUMBER = re.compile(r"\[(\d{1,4})\]")


class Citation(NamedTuple):
  """Where an answer is from: the number of a hit from 0, and the characters of the answer in its file."""

  hit: int
  line: int
  start: int
  end: int


class Answer(NamedTuple):
  """An answer, empty where the documents have none, and its sources, best first."""

  text: str
  citations: tuple[Citation, ...] = ()


def of_hit(hits: Sequence[Hit], number: int) -> Citation:
  """Returns the citation of all of a hit."""
  chunk = hits[number].chunk
  return Citation(number, chunk.line, chunk.start, chunk.end)


def of_span(hits: Sequence[Hit], number: int, start: int, text: str) -> Citation:
  """Returns the citation of a part of a hit, which starts at a character of it."""
  chunk = hits[number].chunk
  line = chunk.line + chunk.text.count("\n", 0, start)
  return Citation(number, line, chunk.start + start, chunk.start + start + len(text))


@dataclasses.dataclass(frozen=True)
class Extractor:
  """Answers with a span of the hits, by a model that extracts answers.

  Hits that agree are combined: the score of an answer is log sum exp(margin) over the hits that have it, whose margin
  is that of the span over no answer; answers are compared as SQuAD does.
  """

  predictor: Predictor

  def __call__(self, question: str, hits: Sequence[Hit]) -> Answer:
    """Returns the best answer."""
    predictions = self.predictor([Text(question, hit.chunk.text) for hit in hits])
    groups: dict[str, list[tuple[float, int]]] = {}
    for i, prediction in enumerate(predictions):
      if prediction["answer"] and np.isfinite(prediction["margin"]):
        groups.setdefault(normalize(prediction["answer"]), []).append((prediction["margin"], i))
    if not groups:
      return Answer("")
    best = sorted(max(groups.values(), key=lambda own: np.logaddexp.reduce([m for m, _ in own])), reverse=True)
    citations = []
    for _, i in best:
      citations.append(of_span(hits, i, predictions[i]["start"], predictions[i]["answer"]))
    return Answer(predictions[best[0][1]]["answer"], tuple(citations))


@dataclasses.dataclass(frozen=True)
class ChatReader:
  """Answers with what a chat model writes after the hits; it cites those whose numbers it writes, or all it has read.

  Hits that do not fit into the model's window are left out, the last first.
  """

  loaded: LoadedModel
  template: str = ""
  max_new_tokens: int = 128

  def __call__(self, question: str, hits: Sequence[Hit]) -> Answer:
    """Returns the answer of the model, greedily.

    Raises:
      UserError: not even the first hit fits.
    """
    chat = Chat(self.loaded, self.template, Sampling(0.0), self.max_new_tokens)
    chat.set_system(SYSTEM)
    for used in range(len(hits), 0, -1):
      sources = "\n\n".join(f"[{i}] {hit.chunk.text}" for i, hit in enumerate(hits[:used], 1))
      message = f"{sources}\n\nQuestion: {question}"
      try:
        ids, _ = chat.fit(message)
        break
      except UserError:
        if used == 1:
          raise
    text = "".join(chat.answer(ids, message)).strip()
    if not text or NONE in text.lower():
      return Answer("")
    named = dict.fromkeys(int(number) - 1 for number in NUMBER.findall(text) if 1 <= int(number) <= used)
    return Answer(text, tuple(of_hit(hits, i) for i in (named or range(used))))


@dataclasses.dataclass(frozen=True)
class Writer:
  """Answers with what an encoder-decoder writes that read the hits apart (Izacard and Grave, 2021).

  It cites the hits that have the answer in their text, and all where none has. data: how it was trained to read.
  """

  loaded: LoadedModel
  data: Paragraphs
  max_new_tokens: int = 128

  def __call__(self, question: str, hits: Sequence[Hit]) -> Answer:
    """Returns the answer of the model, greedily."""
    tokenizer, data, texts = self.loaded.tokenizer, self.data, [hit.chunk.text for hit in hits]
    paragraphs = encode_paragraphs(tokenizer, question, texts, data.paragraph_length, data.question_length)
    model, params = self.loaded.task.model, self.loaded.params["model"]
    (text,) = write_answers(model, params, tokenizer, [paragraphs], self.max_new_tokens)
    if not normalize(text):
      return Answer("")
    words = r"(?<!\w)" + r"\s+".join(map(re.escape, text.split())) + r"(?!\w)"
    places = [re.search(words, own, re.IGNORECASE) for own in texts]
    cited = [of_span(hits, i, at.start(), at[0]) for i, at in enumerate(places) if at]
    return Answer(text, tuple(cited or (of_hit(hits, i) for i in range(len(hits)))))


Reader = Extractor | Writer | ChatReader


def make_reader(loaded: LoadedModel, path: epath.PathLike, template: str = "", max_new_tokens: int = 128) -> Reader:
  """Returns the reader that a model can be.

  Raises:
    UserError: it neither extracts answers nor writes them.
  """
  task = loaded.task
  if isinstance(task, SpanExtraction) or (isinstance(task, Encode) and task.classifier and task.labels == "span"):
    return Extractor(make_predictor(loaded, path))
  data = loaded.run.data if loaded.run else None
  if isinstance(task.model, FusionInDecoder) and isinstance(data, Paragraphs):
    return Writer(loaded, data, max_new_tokens)
  if task.model.kind != "decoder" or isinstance(task, Encode):
    raise UserError(
      f"ask: {path} cannot read: a reader is a model that extracts answers (configs/squad.py), one that writes them "
      "(configs/fusion_in_decoder.py), or a decoder that chats"
    )
  return ChatReader(loaded, template, max_new_tokens)


def answer(question: str, hits: Sequence[Hit], reader: Reader | None, threshold: float = THRESHOLD) -> Answer:
  """Returns the answer of a reader; without one, all hits are the sources of an answer without text.

  No answer, and no sources, where no hit has a similarity of at least `threshold`; 0 is none.
  """
  if not hits or (threshold and max(hit.similarity for hit in hits) < threshold):
    return Answer("")
  if reader is None:
    return Answer("", tuple(of_hit(hits, i) for i in range(len(hits))))
  return reader(question, hits)
