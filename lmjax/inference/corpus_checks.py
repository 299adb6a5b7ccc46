"""What a suite and a model's answers have in common with a training corpus, and Min-K % probability without one."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from lmjax import config as configs
from lmjax.data.pipeline import Reader
from lmjax.data.sources.base import Source
from lmjax.data.sources.shards import Prepared
from lmjax.evals import corpus
from lmjax.evals.suites import contamination, memorisation, metrics
from lmjax.evals.suites.contamination import NGrams, Overlap
from lmjax.evals.suites.items import Item, make_items, without_literals
from lmjax.evals.suites.memorisation import Substrings
from lmjax.evals.suites.task_files import TaskFile
from lmjax.experiment import load_config
from lmjax.inference import scoring
from lmjax.inference.progress import ProgressBar
from lmjax.storage.base import LoadedModel
from lmjax.utils import files

Records = dict[str, list[dict[str, Any]]]  # of each task


@dataclasses.dataclass(frozen=True)
class Corpus:
  """A training corpus, and the number of processes that read it.

  files: paths and globs; run folders, prepared folders and configs (`configs/text.py:files=a.txt`) stand for what is
  trained on.
  """

  files: Sequence[str]
  workers: int = 1

  def open(self) -> list[str | Source]:
    """Returns paths, globs and sources.

    Raises:
      UserError: a config cannot be read.
    """
    return [_open(name) for name in self.files]

  def count(self, matcher: corpus.Matcher, key: Any, state: epath.Path) -> dict[int, int]:
    """Returns how often each thing that a matcher searches occurs; see `lmjax.evals.corpus.search`."""
    parts = corpus.split(self.open())
    with ProgressBar("corpus", len(parts), unit="parts") as progress:
      return corpus.search(parts, matcher, key, state, self.workers, progress.update)


def _open(name: str) -> str | Source:
  path = files.expand(name)
  if (path / "index.json").exists() and not (path / "config.json").exists():
    return Prepared(name)
  if (path / "config.json").exists():
    settings = load_config(path)
  elif re.search(r"\.py(:|$)", name) and (not path.is_file() or "def get_config" in files.read_text(path)):
    settings = configs.load(name)
  else:
    return name
  return configs.build(settings["data"], "data", None, Reader).source


def plain_items(task: TaskFile, data: str | None, limit: int | None, literals: bool = True) -> list[Item]:
  """Returns the items of a task without examples and description.

  literals: whether the words that the template itself adds, such as "Question:", are kept.
  """
  text = task.doc_to_text
  if not literals and isinstance(text, str):
    text = without_literals(text)
  return make_items(dataclasses.replace(task, description="", doc_to_text=text), data, 0, limit)


def contaminated(
  tasks: Sequence[TaskFile], data: str | None, limit: int | None, records: Records, source: Corpus, folder: epath.Path
) -> dict[str, dict[str, Any]]:
  """Returns for each task its items that overlap with a corpus, and the scores of all, of clean and of dirty ones.

  The overlaps are written to contamination.jsonl in the folder.

  Raises:
    UserError: the corpus cannot be read, or the folder not be written.
  """
  grams, overlaps = NGrams(), {}
  for task in tasks:
    overlaps[task.task] = grams.add(task, plain_items(task, data, limit, literals=False))
  counts = source.count(grams, grams.key(), folder / "corpus.jsonl")
  texts = list(grams.numbers)
  lines, results = [], {}
  for task in tasks:
    overlap = overlaps[task.task]
    matches = overlap.matches(counts)
    for number, own in enumerate(matches):
      if own:
        match = {"ngram": texts[own[0]].decode(), "count": counts[own[0]]}
        lines.append({"task": task.task, "item": number, "ngrams": len(own), "of": len(overlap.grams[number])} | match)
    results[task.task] = _report(task, overlap, matches, records[task.task])
  files.write(folder / "contamination.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
  return results


def memorised(loaded: LoadedModel, records: Records, source: Corpus, folder: epath.Path) -> dict[str, dict[str, Any]]:
  """Returns for each task the share of the 50-token windows of its answers that occur verbatim in a corpus.

  Raises:
    UserError: the corpus cannot be read, or the folder not be written.
  """
  windows = {
    name: [memorisation.windows(loaded.tokenizer, record["answer"]) for record in answers]
    for name, answers in records.items()
  }
  search = Substrings([window for answers in windows.values() for own in answers for window in own])
  counts = source.count(search, search.key(), folder / "windows.jsonl") if search.strings else {}
  occurring = {search.strings[number]: count for number, count in counts.items()}
  return {name: memorisation.share(answers, occurring) for name, answers in windows.items()}


def _report(task: TaskFile, overlap: Overlap, matches: Sequence[list[int]], records: list[dict]) -> dict[str, Any]:
  is_dirty = {number: bool(own) for number, own in enumerate(matches)}
  dirty = [record for record in records if is_dirty[record["item"]]]
  clean = [record for record in records if not is_dirty[record["item"]] and overlap.grams[record["item"]]]
  report: dict[str, Any] = {"n": overlap.size, "items": len(records), "dirty": len(dirty), "clean": len(clean)}
  report["unchecked"] = len(records) - len(dirty) - len(clean)  # shorter than N words
  report["dirty_items"] = sorted(record["item"] for record in dirty)
  parts = {"all": records, "clean": clean, "dirty": dirty}
  report["metrics"] = {name: metrics.summarise(task, part) for name, part in parts.items() if part}
  if clean and dirty:
    report["metrics"]["difference"] = metrics.difference(task, dirty, clean)
  return report


def min_k(loaded: LoadedModel, task: TaskFile, items: Sequence[Item], percent: float) -> dict[int, float]:
  """Returns the Min-K % probability of each item's text, by the item's number; none where there are no tokens.

    mean of log p over the K % of its tokens with the lowest ones (Shi et al., 2024, arXiv:2310.16789)

  High values suggest that the text was trained on.
  """
  encoder = scoring.encoder_of(loaded)
  rows, owners = [], []
  for item in items:
    new = encoder.rolling(contamination.text_of(task, item))
    rows += new
    owners += [item.number] * len(new)
  tokens: dict[int, list[np.ndarray]] = {}
  for chosen, values in scoring.likelihood_of(loaded).each_token(loaded.params, rows):
    for i, log_probs in zip(chosen, values, strict=True):
      tokens.setdefault(owners[i], []).append(log_probs)
  return {number: lowest_mean(np.concatenate(parts), percent) for number, parts in tokens.items()}


def lowest_mean(log_probs: np.ndarray, percent: float) -> float:
  """Returns the mean of the lowest values, `percent` of them and at least one."""
  count = max(int(len(log_probs) * percent / 100), 1)
  return float(np.sort(log_probs.astype(np.float64))[:count].mean())


def auc(values: Mapping[int, float], dirty: Sequence[int]) -> float | None:
  """Returns how often the value of a dirty item is above that of another one, ties half; None where all are alike."""
  chosen = set(dirty)
  high = np.array([value for number, value in values.items() if number in chosen])
  low = np.sort([value for number, value in values.items() if number not in chosen])
  if not len(high) or not len(low):
    return None
  above = (np.searchsorted(low, high, "left") + np.searchsorted(low, high, "right")) / 2
  return float(above.mean() / len(low))
