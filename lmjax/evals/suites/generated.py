"""Scores of generated answers: exact match, answer F1, BLEU, chrF and ROUGE."""

import functools
import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import sacrebleu

from lmjax.evals.squad_scores import compare
from lmjax.evals.suites.items import Item
from lmjax.evals.suites.task_files import CORPUS_METRICS, ROUGE, TaskFile
from lmjax.utils.errors import UserError

Record = dict[str, Any]


def score_answer(task: TaskFile, item: Item, answer: str) -> Record:
  """Returns the scores of a generated answer by the task's metrics, the best over the right answers.

  exact_match: 1 if equal to a right answer, both changed by the metric's options, or the last number in both
  answer_f1: F1 of words as SQuAD compares them (see `evals.squad_scores.compare`)
  bleu, chrf: the counts that sacreBLEU adds up over items
  rouge1, rouge2, rougeL: F1 of words, of pairs of words, of the longest common subsequence (Lin, 2004)
  """
  right, names = [str(target) for target in item.target], task.metrics()
  record: Record = {"answer": answer}
  if task.metadata.get("answer") == "number":
    number = last_number(answer)
    record["exact_match"] = float(bool(number) and number in [last_number(target) for target in right])
  else:
    options = next((metric for metric in task.metric_list if metric["metric"] == "exact_match"), {})
    record["exact_match"] = float(_normalise(answer, options) in [_normalise(target, options) for target in right])
  if "answer_f1" in names:
    record["answer_f1"] = compare(answer, right)[1]
  for name in CORPUS_METRICS:
    if name in names:
      record[name] = counts(name, answer, right)
  if rouge := [name for name in ROUGE if name in names]:
    scores = _rouge(tuple(rouge)).score_multi(right, answer)
    record |= {name: float(scores[name].fmeasure) for name in rouge}
  return record


@functools.cache
def _corpus_metric(name: str) -> Any:
  return {"bleu": sacrebleu.BLEU, "chrf": sacrebleu.CHRF}[name]()


@functools.cache
def _rouge(names: tuple[str, ...]) -> Any:
  try:
    return importlib.import_module("rouge_score.rouge_scorer").RougeScorer(list(names))
  except ImportError as error:
    raise UserError("evaluate: ROUGE needs the package rouge-score: pip install 'lmjax[eval]'") from error


def counts(name: str, answer: str, right: Sequence[str]) -> list[int]:
  """Returns what BLEU or chrF counts in one answer: matches and totals of each order, and lengths."""
  statistics = _corpus_metric(name)._extract_corpus_statistics([answer], [[text] for text in right])
  return [int(count) for count in statistics[0]]


def corpus_score(name: str) -> Callable[[np.ndarray], float]:
  """Returns the function from the counts of items [items, 1, counts] to BLEU or chrF, from 0 to 100."""
  return lambda values: float(_corpus_metric(name)._compute_score_from_stats(values.sum(axis=(0, 1)).tolist()).score)


def last_number(text: str) -> str:
  """Returns the last number in a string, without thousands separators and a decimal part of zeros; "" without one."""
  numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
  if not numbers:
    return ""
  number = numbers[-1].replace(",", "")
  return re.sub(r"\.0+$", "", number)


def _normalise(text: str, options: Mapping[str, Any]) -> str:
  for pattern in options.get("regexes_to_ignore", ()):
    text = re.sub(pattern, "", text)
  if options.get("ignore_case"):
    text = text.lower()
  if options.get("ignore_punctuation"):
    text = re.sub(r"[!-/:-@\[-`{-~]", "", text)
  if options.get("ignore_numbers"):
    text = re.sub(r"[0-9]", "", text)
  return text
