"""English text that needs no download: the documentation in every Python installation."""

import ast
import dataclasses
import functools
import hashlib
import importlib
import inspect
import pathlib
import sysconfig

from lmjax.data.sources.pair import Pair
from lmjax.data.sources.splits import split_range
from lmjax.utils.errors import UserError

EXCLUDED = ("site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__phello__")


@dataclasses.dataclass(frozen=True)
class PythonDocs:
  """The documentation of this Python; each topic and each docstring is a document. split: as `:90%`, empty for all."""

  split: str = ""

  @functools.cached_property
  def _texts(self) -> list[str]:
    texts = python_documentation()
    return [texts[i] for i in split_range(len(texts), self.split)]

  def __len__(self) -> int:
    return len(self._texts)

  def __getitem__(self, index: int) -> str:
    return self._texts[index]


class PythonDocPairs(PythonDocs):
  """Pairs for debugging: the first 8 words of each document, and the next 8."""

  def __getitem__(self, index: int) -> Pair:  # type: ignore[override]  # pairs, not text
    words = super().__getitem__(index).split()
    return Pair(" ".join(words[:8]), " ".join(words[8:16]))


@functools.cache
def python_documentation() -> tuple[str, ...]:
  """Returns the language reference topics and the docstrings of the standard library, about 2 million characters.

  They are distinct, stripped, and sorted by their hash, so that every slice is a random sample, always the same one.

  Raises:
    UserError: this Python was installed without its documentation.
  """
  try:
    topics = importlib.import_module("pydoc_data.topics").topics
  except ImportError:
    topics = {}
  library = pathlib.Path(sysconfig.get_paths()["stdlib"])
  texts = {_clean(text) for text in topics.values()}
  for path in sorted(library.rglob("*.py")):
    if not set(path.relative_to(library).parts) & set(EXCLUDED):
      texts |= set(_docstrings(path))
  texts = {text for text in texts if len(text) >= 40}
  if sum(map(len, texts)) < 200_000:
    raise UserError(
      f"data: this Python has too little documentation to train on (in pydoc_data and {library}); "
      "install the full standard library, or use your own text: --config configs/text.py:files='my/*.txt'"
    )
  return tuple(sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest()))


def _docstrings(path: pathlib.Path):
  """Yields the docstrings of one module; nothing if it cannot be parsed."""
  try:
    tree = ast.parse(path.read_bytes())
  except (SyntaxError, ValueError, OSError):
    return
  for node in ast.walk(tree):
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
      text = ast.get_docstring(node, clean=False)
      if text:
        yield _clean(text)


def _clean(text: str) -> str:
  return inspect.cleandoc(text).encode("utf-8", "ignore").decode("utf-8")
