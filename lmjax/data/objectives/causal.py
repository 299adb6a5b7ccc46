"""Rows of text for causal language models."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from lmjax.data.concatenate import Concatenate
from lmjax.data.documents import Documents
from lmjax.data.packer import Packer
from lmjax.data.packing import FirstFitText, TextBuckets, Windows
from lmjax.data.pipeline import Reader
from lmjax.data.schedule import proportions, schedule
from lmjax.data.sources.base import BadRecord, read_document
from lmjax.utils.errors import UserError

PACKINGS = ("concatenate", "first_fit", "buckets", "windows")
BUCKET_SAMPLE = 1000  # documents whose lengths decide how often each bucket occurs


@dataclasses.dataclass(frozen=True)
class Text(Reader):
  """Rows of text for causal language models.

  packing: `concatenate` concatenates documents and splits them at the ends of rows; `first_fit` puts each document into
  the first row that has space for it. Both separate documents by segments. `buckets` puts each document into a row of
  its own, whose length is one of `buckets`. `windows` concatenates all documents, without boundaries between them, and
  takes windows of them; the corpus is tokenized when the run starts, so it should be small.
  """

  packing: str = "concatenate"
  buckets: tuple[int, ...] = ()

  def __post_init__(self):
    super().__post_init__()
    if self.packing not in PACKINGS:
      raise ValueError(f"packing must be one of {', '.join(PACKINGS)}, not {self.packing!r}")
    if (self.packing == "buckets") != bool(self.buckets) or any(not 0 < b <= self.length for b in self.buckets):
      raise ValueError("buckets must be lengths from 1 to `length`; set them if and only if packing='buckets'")

  def position_size(self, training: bool) -> int:
    if self.packing == "windows":
      return 1
    return 1 + len(self.buckets) if self.packing == "buckets" and training else 2

  def packers(self, documents: Documents, streams: Iterable[int]) -> dict[int, Packer]:
    documents.check_tokenizer()
    if self.packing == "windows":
      ids, size = _concatenate(documents)
      return {s: Windows(ids, size, self.length, documents.seed, s) for s in streams}
    if self.packing == "buckets":
      buckets, order = (self.length,), [0]  # in a single pass, all rows have the same length
      if documents.seed is not None:
        buckets, order = tuple(sorted(self.buckets)), self._bucket_order(documents)
      return {s: TextBuckets(buckets, order) for s in streams}
    packer = Concatenate if self.packing == "concatenate" else FirstFitText
    return {s: packer(self.length) for s in streams}

  def _bucket_order(self, documents: Documents) -> list[int]:
    """Returns a schedule in which each bucket occurs in proportion to its documents."""
    source = documents.source
    step = max(len(source) // BUCKET_SAMPLE, 1)
    sample = (read_document(source, i, documents.encode) for i in range(0, len(source), step))
    lengths = [len(doc[0]) - 1 for doc in sample if not isinstance(doc, BadRecord) and len(doc[0])]
    if not lengths:
      raise UserError("data: the source contains no text; check config.data.source")
    buckets = np.minimum(np.searchsorted(sorted(self.buckets), lengths), len(self.buckets) - 1)
    return schedule(proportions(np.bincount(buckets, minlength=len(self.buckets)))).tolist()


def _concatenate(documents: Documents) -> tuple[np.ndarray, int]:
  """Returns the ids of all documents [T], without start and end, and the bytes of their text."""
  encoded = [read_document(documents.source, i, documents.encode) for i in range(len(documents.source))]
  skipped = [document for document in encoded if isinstance(document, BadRecord)]
  read = [document for document in encoded if not isinstance(document, BadRecord)]
  ids = np.concatenate([ids[1:-1] for ids, _ in read]) if read else np.zeros(0, np.int32)
  if len(ids) < 2:
    raise UserError("data: the source contains no text")
  documents.report = (len(encoded), skipped)
  return ids, sum(size for _, size in read)
