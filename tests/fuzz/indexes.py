"""An index of documents: made with an encoder that needs no model, and searched by words and by vectors."""

import pathlib
from types import SimpleNamespace
from typing import Any

import numpy as np
from etils import epath

from lmjax.data.tokenizers.base import Bytes
from lmjax.inference.indexing import Builder
from lmjax.inference.retrieval import Index, Settings


def make(folder: pathlib.Path) -> None:
  """Writes an index of two files."""
  (folder.parent / "documents").mkdir(exist_ok=True)
  for name in "ab":
    (folder.parent / "documents" / f"{name}.txt").write_text(f"the cat {name} sat\n\non a mat\n" * 3)
  vectors = lambda params, texts: np.eye(4, dtype=np.float32)[[len(text) % 4 for text in texts]]  # noqa: E731
  chunks = SimpleNamespace(tokenizer=Bytes(), encode_text=str, sequences=vectors)
  encoder: Any = SimpleNamespace(chunks=chunks, loaded=SimpleNamespace(params={}))
  builder = Builder(epath.Path(folder), Settings("x", "0", 20), encoder, 4)
  list(builder.run([str(folder.parent / "documents")]))


def read(folder: pathlib.Path) -> None:
  """Searches it."""
  index = Index(folder)
  queries = np.eye(4, dtype=np.float32)[:2]
  for hits in index.search(["the cat", "a mat"], queries, 50):
    assert all(hit.chunk.text for hit in hits)
