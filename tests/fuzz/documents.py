"""Texts, JSON lines and prompts."""

import gzip
import json
import pathlib

from lmjax.data.objectives.causal import Text
from lmjax.data.sources.pairs import JsonPairs, PatternLines
from lmjax.data.sources.records import JsonLines
from lmjax.data.sources.text import TextFiles
from lmjax.data.tokenizers.base import Bytes
from lmjax.inference import generate

TEXT = "The quick brown fox jumps over the lazy dog, naïvely; 1234567890 times.\n"


def _read_all(source) -> None:
  for i in range(len(source)):
    source[i]


def make_lines(folder: pathlib.Path) -> None:
  lines = [json.dumps({"text": TEXT + str(i), "source": "a", "target": "b"}) for i in range(9)]
  (folder / "a.jsonl").write_text("\n".join(lines) + "\n")


def read_lines(folder: pathlib.Path) -> None:
  _read_all(JsonLines(str(folder / "a.jsonl")))
  _read_all(JsonPairs(str(folder / "a.jsonl")))
  data = Text(JsonLines(str(folder / "a.jsonl")), JsonLines(str(folder / "a.jsonl")), 16)
  batches = data.train(Bytes(), 1, 0)
  next(batches)
  batches.close()


def make_texts(folder: pathlib.Path) -> None:
  (folder / "a.txt").write_text((TEXT + "one\ttwo\n") * 9)
  (folder / "a.txt.gz").write_bytes(gzip.compress((TEXT * 9).encode(), mtime=0))


def read_texts(folder: pathlib.Path) -> None:
  _read_all(TextFiles(str(folder / "a.txt*"), "paragraph"))
  _read_all(PatternLines(str(folder / "a.txt")))


def make_prompts(folder: pathlib.Path) -> None:
  (folder / "prompts.jsonl").write_text('{"prompt": "a b"}\n{"prompt": "c", "other": [1]}\n{"prompt": ""}\n')


def read_prompts(folder: pathlib.Path) -> None:
  generate.read_prompts(folder / "prompts.jsonl")
