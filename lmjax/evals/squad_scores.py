"""How SQuAD's script compares answers (Rajpurkar et al., 2016 and 2018)."""

import collections
import re
import string
from collections.abc import Sequence

import numpy as np

from lmjax.evals.bootstrap import limits


def normalize(text: str) -> str:
  """Returns an answer in lower case, without punctuation, articles and extra space."""
  text = "".join(character for character in text.lower() if character not in string.punctuation)
  return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def compare(answer: str, true: Sequence[str]) -> tuple[float, float]:
  """Returns exact match and F1 of an answer, the best over the true ones; none is given for no answer."""
  pairs = [(normalize(answer), normalize(text)) for text in true if normalize(text)] or [(normalize(answer), "")]
  return max(float(a == b) for a, b in pairs), max(_f1(a.split(), b.split()) for a, b in pairs)


def _f1(given: list[str], wanted: list[str]) -> float:
  if not given or not wanted:
    return float(given == wanted)
  common = sum((collections.Counter(given) & collections.Counter(wanted)).values())
  return 2 * common / (len(given) + len(wanted))


def summarize(values_Nx2: np.ndarray, resamples: int) -> dict[str, float]:
  """Returns the means of exact match and F1 over the questions, and the interval of F1."""
  exact, f1 = map(float, values_Nx2.mean(axis=0))
  return {"exact": exact, "f1": f1} | limits("f1", values_Nx2[:, 1], np.mean, resamples=resamples)
