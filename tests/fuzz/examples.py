"""The formats of labelled examples: tables, JSON lines, CoNLL and SQuAD files, and the input of predictions."""

import json
import pathlib

from lmjax.data.objectives.labelled import Labelled
from lmjax.data.objectives.spans import Spans
from lmjax.data.objectives.tagging import Tagging
from lmjax.data.sources.conll import Conll
from lmjax.data.sources.labelled import Table
from lmjax.data.sources.labelled_records import JsonRecords
from lmjax.data.sources.squad import Squad
from lmjax.data.sources.superglue import MultiRC, ReCoRD
from lmjax.data.tokenizers.base import Bytes
from lmjax.inference.predict import read_texts


def make(folder: pathlib.Path) -> None:
  """Writes a file of each format."""
  rows = [("good film", "a bad one", "1"), ("it is, so", "no", "0"), ("naïve", "x", "1")]
  (folder / "a.tsv").write_text("\n".join(map("\t".join, [("text", "other", "label"), *rows])) + "\n")
  (folder / "a.csv").write_text("text,other,label\n" + "".join(f'"{a}","{b}",{label}\n' for a, b, label in rows))
  lines = [json.dumps({"text": a, "other": b, "label": int(label)}) for a, b, label in rows]
  (folder / "a.jsonl").write_text("\n".join(lines) + "\n")
  (folder / "a.conll").write_text("Anna\tB-PER\nsaw\tO\n\nNew\tB-LOC\nYork\tI-LOC\n")
  answers = [{"text": "1899", "answer_start": 15}]
  questions = [
    {"id": "1", "question": "When?", "answers": answers},
    {"id": "2", "question": "?", "is_impossible": True},
  ]
  paragraphs = [{"context": "It was open in 1899.", "qas": questions}]
  passage = {"text": "Ann ran.", "questions": [{"question": "Who?", "answers": [{"text": "Ann", "label": 1}]}]}
  (folder / "multirc.jsonl").write_text((json.dumps({"passage": passage}) + "\n") * 2)
  passage = {"text": "Ann ran.", "entities": [{"start": 0, "end": 2}]}
  asked = [{"query": "@placeholder ran", "answers": [{"text": "Ann"}]}]
  (folder / "record.jsonl").write_text((json.dumps({"passage": passage, "qas": asked}) + "\n") * 2)
  (folder / "a.json").write_text(json.dumps({"version": "2", "data": [{"title": "t", "paragraphs": paragraphs}]}))


def read(folder: pathlib.Path) -> None:
  """Reads all of them, and makes rows of them."""
  columns = dict(text="text", other="other", label="label")
  tables = [Table(str(folder / name), **columns) for name in ("a.tsv", "a.csv")]
  for source in (*tables, JsonRecords(str(folder / "a.jsonl"), **columns)):
    Labelled(source, source, 64, labels=("0", "1")).validate(Bytes(), 2)
  for source in (MultiRC(str(folder / "multirc.jsonl")), ReCoRD(str(folder / "record.jsonl"))):
    Labelled(source, source, 64, labels=("false", "true")).validate(Bytes(), 2)
  tagged = Conll(str(folder / "a.conll"))
  Tagging(tagged, tagged, 64, labels=("O", "B-PER", "B-LOC", "I-LOC")).validate(Bytes(), 2)
  questions = Squad(str(folder / "a.json"), unanswerable=True)
  Spans(questions, questions, 64, overlap=8).validate(Bytes(), 2)
  list(read_texts(str(folder / "a.jsonl")))
  list(read_texts(str(folder / "a.tsv")))
