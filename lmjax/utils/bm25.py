"""BM25, by the library bm25s."""

import logging
import re
from collections.abc import Iterable
from typing import Any

WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
  """Returns the words that are compared: lower case, without punctuation."""
  return WORD.findall(text.lower())


def build(texts: Iterable[str]) -> Any:
  """Returns a bm25s.BM25 of texts: k1 1.5, b 0.75 (Robertson & Zaragoza, 2009)."""
  import bm25s

  logging.getLogger("bm25s").setLevel(logging.WARNING)
  model = bm25s.BM25()
  model.index([words(text) for text in texts], show_progress=False)
  return model


def best(model: Any, question: str, top: int) -> list[tuple[int, float]]:
  """Returns the texts with the largest scores above 0, at most `top` of them, best first, as (number, score)."""
  known = [word for word in words(question) if word in model.vocab_dict]
  if not known:
    return []
  top = min(top, int(model.scores["num_docs"]))
  rows, scores = model.retrieve([known], k=top, show_progress=False, backend_selection="numpy")
  return [(int(row), float(score)) for row, score in zip(rows[0], scores[0], strict=True) if score > 0]
