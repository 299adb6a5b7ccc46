"""Code and documentation use plain English and the words of the field; other words are listed by file and line."""

import ast
import pathlib
import re

import pytest

from tests.conftest import ROOT

# Words and phrases -> what to write instead. Search is case-insensitive; underscores and digits end a word, so
# identifiers are searched too.
PHRASES = {
  "told": "latest, message, cells, summary, settings",
  "said": "given, stated, defined",
  "goes on|go on|going on|went on": "resume, continue",
  r"(?<!there\s)is no(?! longer)": "is not a",
  "holds? none|holding none": "no ... found in",
  "ha(s|ve) no like": "has no equivalent",
  "at hand": "available",
  "a text(?! (file|model|field))": "a string, a document, a sentence, or just text",
  "one's own": "yours, user-defined",
  "doors?": "command",
  "born|birth": "initialised, init",
  "rooms|room(?! for)": "folder",
  "theirs|ours": "Hugging Face, lmjax",
  "bad": "malformed, skipped",
  "damaged": "corrupt",
  "mend(s|ed)?": "fix",
  "rubbish": "malformed",
  "commonest": "most frequent",
  "furthest": "max_distance",
  "scattered": "shuffled",
  "spelt": "spelled",
  "passages?": "row, document",
  "stretch(es)?": "span, window, tokens",
  "what (it|they) (is|are) made of": "its parts",
  "stands(?! for)": "is",
  "looked (at|into)|looks into": "inspected",
  "for ever": "forever",
  "lend|lends|lent": "give, use",
}

# Identifiers, without leading underscores -> what to write instead.
NAMES = {
  "found": "the thing itself: paths, scores, metrics, tensors",
  "settle": "process_metrics",
  "speaker": "main_process_output",
  "fate": "u",
  "surprise": "nll",
  "odds": "probs",
  "backed": "backoff",
  "chances": "log_probs",
  "going_on": "not_done",
  "learnt": "in_train",
  "is_bare": "is_checkpoint",
  "set_aside": "quarantine",
  "empty_cache": "init_cache",
  "energy_how": "energy_method",
  "peak_rate": "peak_lr",
  "decayed": "decay_pattern",
  "NEVER": "NEG_INF",
}

# (file, word, or * for all) -> why it is right there.
ALLOWED = {
  ("lmjax/checkpoint.py", "damaged"): "the folder of corrupt checkpoints in format 1",
  ("lmjax/utils/renames.py", "*"): "lists the old names",
  ("docs/upgrading.md", "*"): "lists the old names",
  ("launch/slurm.sbatch", "bad"): "an option of srun",
  ("lmjax/storage/huggingface/families/base.py", "bad"): "a key of config.json, bad_words_ids",
  ("lmjax/data/tokenizers/settings.py", "bad"): "a key of config.json, bad_words_ids",
  ("docs/flax_classes.md", "bad"): "a key of config.json, bad_words_ids",
  ("configs/superglue.py", "passage"): "a key of BoolQ's records",
  ("docs/fine_tuning.md", "passage"): "a key of MultiRC's records",
  ("lmjax/data/sources/superglue.py", "passage"): "a key of the records of MultiRC and ReCoRD",
}

SUFFIXES = (".py", ".md", ".sh", ".sbatch", ".yaml", ".ipynb")
PACKAGES = sorted(path.parent for path in (ROOT / "lmjax").glob("*/__init__.py"))
FOLDERS = {
  "lmjax": sorted((ROOT / "lmjax").glob("*.py")),
  **{f"lmjax/{path.name}": sorted(path.rglob("*.py")) for path in PACKAGES},
  **{name: sorted((ROOT / name).rglob("*")) for name in ("configs", "launch", "docs", "notebooks")},
  "README": [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"],
}
PATTERNS = {
  # a phrase may continue on the next line, of a comment too
  re.compile(rf"(?<![a-z])(?:{phrase})(?![a-z])".replace(" ", r"[\s#]+"), re.IGNORECASE): instead
  for phrase, instead in PHRASES.items()
}


def phrases(text: str) -> list[tuple[int, str, str]]:
  """Returns (line, phrase, what to write instead)."""
  return [
    (text.count("\n", 0, match.start()) + 1, " ".join(match[0].split()), instead)
    for pattern, instead in PATTERNS.items()
    for match in pattern.finditer(text)
  ]


def names(text: str) -> list[tuple[int, str, str]]:
  """Returns (line, identifier, what to write instead) of Python source."""
  identifiers = {
    (getattr(node, "lineno", 0), name.lstrip("_"))
    for node in ast.walk(ast.parse(text))
    for name in (getattr(node, field, None) for field in ("id", "arg", "attr", "name"))
    if isinstance(name, str)
  }
  return [(line, name, NAMES[name]) for line, name in identifiers if name in NAMES]


def faults(path: pathlib.Path) -> list[str]:
  """Returns a line for each word or name in a file that is not allowed there."""
  text, where = path.read_text(), path.relative_to(ROOT).as_posix()
  words = phrases(text) + (names(text) if path.suffix == ".py" else [])
  allowed = {word for file, word in ALLOWED if file == where}
  return [
    f"{where}:{line}: {word!r}; write: {instead}"
    for line, word, instead in sorted(words)
    if "*" not in allowed and word.lower() not in allowed
  ]


@pytest.mark.parametrize("folder", FOLDERS)
def test_words(folder):
  files = [path for path in FOLDERS[folder] if path.suffix in SUFFIXES]
  assert files
  listed = [line for path in files for line in faults(path)]
  assert not listed, "\n" + "\n".join(listed)


def test_the_search_sees_identifiers_and_line_breaks():
  assert [(line, word) for line, word, _ in phrases("is_told; it goes\n  # on; it is no\nlist")] == [
    (1, "told"), (1, "goes # on"), (2, "is no")
  ]  # fmt: skip
  assert not phrases("there is no list; a text file; stands for; it is no longer; untold; a BadRecord")
  assert names("found = [_fate.x]") and not names("# found\nfoundation = 1")


def test_every_exception_is_needed():
  for file, word in ALLOWED:
    text = (ROOT / file).read_text()
    assert word == "*" or word in text, f"{file} does not have {word!r}: remove the exception"
