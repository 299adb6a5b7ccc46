"""Questions: the SQuAD reader, offsets of answers, windows of long paragraphs, and how answers are compared."""

import copy
import json

import numpy as np
import pytest

from lmjax.data.objectives.spans import Spans, place_of
from lmjax.data.sources.base import BadRecord
from lmjax.data.sources.examples import Question
from lmjax.data.sources.squad import Squad
from lmjax.data.tokenizers import registry
from lmjax.data.tokenizers.base import Bytes
from lmjax.data.tokenizers.registry import TokenizerConfig
from lmjax.evals.answers import best_answer
from lmjax.evals.squad_scores import compare, normalize, summarize
from lmjax.utils.errors import UserError

CONTEXT = "The naïve café opened in 1899. It closed in 1920."
GOOD = {"id": "1", "question": "When did it open?", "answers": [{"text": "1899", "answer_start": 25}]}


def squad(tmp_path, questions, name="a.json", others=(), **options):
  paragraphs = [{"context": CONTEXT, "qas": questions}, *({"context": c, "qas": []} for c in others)]
  (tmp_path / name).write_text(json.dumps({"version": "x", "data": [{"title": "t", "paragraphs": paragraphs}]}))
  return Squad(str(tmp_path / name), **options)


def test_questions_and_answers_are_read(tmp_path):
  none = {"id": "2", "question": "Who?", "is_impossible": True, "answers": [], "plausible_answers": []}
  source = squad(tmp_path, [GOOD, none])
  assert [source[i][:4] for i in range(len(source))] == [
    ("1", "When did it open?", CONTEXT, (("1899", 25),)), ("2", "Who?", CONTEXT, ()),
  ]  # fmt: skip
  (tmp_path / "b.json").write_text('{"data": 3}')
  with pytest.raises(UserError, match="is not in SQuAD's format"):
    len(Squad(str(tmp_path / "b.json")))


@pytest.mark.parametrize(
  "change,why",
  [
    (lambda q: q["answers"][0].update(answer_start=26), "has another text at 26"),
    (lambda q: q["answers"][0].update(answer_start=-1), "has another text at -1"),
    (lambda q: q["answers"][0].update(answer_start="25"), "without text or place"),
    (lambda q: q["answers"][0].pop("text"), "without text or place"),
    (lambda q: q["answers"][0].update(text=""), "without text or place"),
    (lambda q: q.update(answers=[]), "is not marked as impossible"),
    (lambda q: q.update(question=" "), "has no text"),
  ],
)
def test_a_malformed_question_is_named(tmp_path, change, why):
  question = copy.deepcopy(GOOD) | {"id": "wrong"}
  change(question)
  source = squad(tmp_path, [question, GOOD])
  assert isinstance(source[0], BadRecord) and why in source[0].why and "question 'wrong'" in source[0].where
  assert isinstance(source[1], Question)


def test_unanswerable_questions_are_about_another_paragraph_without_the_answer(tmp_path):
  source = squad(tmp_path, [GOOD], others=("Also in 1899.", "Nothing here."), unanswerable=True)
  assert (
    source[1] == Question("1-unanswerable", GOOD["question"], "Nothing here.", (), source[0].where) and len(source) == 2
  )


def reader(source, **options):
  return Spans(source, source, **({"length": 40, "overlap": 4, "tokenizer": TokenizerConfig("bytes")} | options))


def test_windows_cover_the_paragraph_and_have_the_answer_at_its_place(tmp_path):
  source = squad(tmp_path, [GOOD])
  data = reader(source, question_length=6)
  arrange = data.arrangement(Bytes())
  windows = data.windows(arrange, GOOD["question"], CONTEXT)
  seen = set()
  for before, window in zip([None, *windows], windows, strict=False):
    ids, size = window.row["inputs"], len(window.offsets)
    assert len(ids) <= 40 and bytes(ids[1:7].astype(np.uint8)) == b"When d"
    text = bytes(ids[window.place : window.place + size].astype(np.uint8)).decode("utf-8", "ignore")
    assert text in CONTEXT and (window.row["token_types"][window.place :] == 1).all()
    seen |= set(window.offsets)
    if before:
      assert window.offsets[:4] == before.offsets[-4:]
    first, last = place_of(window, "1899", 25)
    assert first == last == 0 or bytes(ids[first : last + 1].astype(np.uint8)) == b"1899"
  assert len(seen) == len(CONTEXT) and any(place_of(window, "1899", 25)[0] for window in windows)
  (batch,) = data.validate(Bytes(), len(windows) + 1)
  assert batch["row_weights"].tolist() == [1] * len(windows) + [0]
  assert batch["starts"].tolist() == [*(place_of(window, "1899", 25)[0] for window in windows), 0]
  with pytest.raises(UserError, match="must be more than data.overlap, 4"):
    data = reader(source, length=14, question_length=7)
    data.windows(data.arrangement(Bytes()), GOOD["question"], CONTEXT)


def test_every_row_of_an_epoch_is_made_once(tmp_path):
  second = GOOD | {"id": "2", "question": "Closed?", "answers": [{"text": "1920", "answer_start": 44}]}
  data = reader(squad(tmp_path, [GOOD, second]), streams=1, question_length=6)
  made = [data.windows(data.arrangement(Bytes()), q["question"], CONTEXT) for q in (GOOD, second)]
  batches, rows = data.train(Bytes(), 1, seed=0), []
  for _ in range(sum(map(len, made))):
    rows.append(next(batches)["inputs"][0].tolist())
  batches.close()
  wanted = [[*window.row["inputs"].tolist(), *[0] * (40 - len(window.row["inputs"]))] for w in made for window in w]
  assert sorted(rows) == sorted(wanted)


def test_the_best_span_of_all_windows_is_the_answer(tmp_path):
  source = squad(tmp_path, [GOOD])
  data = reader(source, question_length=6)
  windows = data.windows(data.arrangement(Bytes()), GOOD["question"], CONTEXT)
  scores = np.zeros((len(windows), 40, 2))
  number = next(i for i, window in enumerate(windows) if place_of(window, "1899", 25)[0])
  first, last = place_of(windows[number], "1899", 25)
  scores[number, first, 0] = scores[number, last, 1] = 2.0
  scores[:, 2, :] = 9.0  # of the question
  assert best_answer(CONTEXT, windows, scores, 30, False)[:2] == ("1899", 25)
  before = scores.copy()
  before[number, first - 1, 0] = 3.0  # the space: tokens of byte-level BPE start with it
  assert best_answer(CONTEXT, windows, before, 30, False)[:2] == ("1899", 25)
  scores[:, 0] = 3.0
  assert best_answer(CONTEXT, windows, scores, 30, False) == ("", 0, -2.0)
  assert best_answer(CONTEXT, windows, scores, 30, True)[:2] == ("1899", 25)
  scores[0, 0] = -3.0  # one window has an answer
  assert best_answer(CONTEXT, windows, scores, 30, False)[0] == "1899"
  assert len(best_answer(CONTEXT, windows, scores, 3, True).text) <= 3


def test_answers_are_compared_as_squad_s_script_does():
  assert normalize("The  Cat, (a)  sat!") == "cat sat"
  assert compare("the cat", ["A cat."]) == (1.0, 1.0)
  assert compare("black cat sat", ["cat", "a black cat"]) == (0.0, 0.8)
  assert compare("", []) == (1.0, 1.0) and compare("x", []) == (0.0, 0.0) and compare("", ["x"]) == (0.0, 0.0)
  values = summarize(np.array([[1, 1], [0, 0.5], [0, 0]]), 100)
  assert values["exact"] == 1 / 3 and values["f1"] == 0.5 and values["f1_low"] <= 0.5 <= values["f1_high"]


def test_the_offsets_of_every_answer_in_xquad(data):
  """Each answer is the paragraph's text at its offset, and the text of the tokens that it is given in a row."""
  source = Squad(str(data / "qa_xquad" / "*.json"))
  tokenizer = registry.load(data / "tok_bert_uncased")
  spans = Spans(source, source, 192, TokenizerConfig(), overlap=64)
  arrange, contexts = spans.arrangement(tokenizer), {}
  exact = total = 0
  for question in map(source.__getitem__, range(len(source))):
    assert isinstance(question, Question)
    (text, start), *_ = question.answers
    assert question.context[start : start + len(text)] == text
    windows = contexts.setdefault(question.context, spans.windows(arrange, "", question.context))
    places = [(w, *place_of(w, text, start)) for w in windows]
    chosen = [(w, a - w.place, b - w.place) for w, a, b in places if a]
    assert chosen, question
    for window, first, last in chosen:
      begin, end = window.offsets[first][0], window.offsets[last][1]
      assert begin <= start and start + len(text) <= end
      exact, total = exact + (question.context[begin:end] == text), total + 1
  assert len(source) > 500 and exact / total > 0.97, "an answer may end inside of a token"
