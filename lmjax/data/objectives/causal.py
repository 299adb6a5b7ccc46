"""Rows of text for causal language models."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from lmjax.data.packing import Buckets, Concatenate, FirstFit, Packer, Windows
from lmjax.data.pipeline import Reader
from lmjax.data.sources.base import BadRecord
from lmjax.data.streams import Documents, proportions, schedule
from lmjax.utils.errors import UserError

PACKINGS = ("concatenate", "first_fit", "buckets", "windows")


SAMPLE = 1000  # documents whose lengths decide how often each bucket comes


@dataclasses.dataclass(frozen=True)
class Text(Reader):
  """Text as a language model reads it.

  packing: `concatenate` puts whole documents one after the other, split at the ends of rows, and `first_fit` into the
  first row with room; both keep documents apart by segments. `buckets` gives each a row of its own, of one of the
  lengths `buckets`. `windows` draws windows of one long text, in which documents run on into each other (for small
  corpora: it is tokenized at the start).
  """

  packing: str = "concatenate"
  buckets: tuple[int, ...] = ()

  def __post_init__(self):
    super().__post_init__()
    if self.packing not in PACKINGS:
      raise ValueError(f"packing is one of {', '.join(PACKINGS)}, not {self.packing!r}")
    if (self.packing == "buckets") != bool(self.buckets) or any(not 0 < b <= self.length for b in self.buckets):
      raise ValueError("buckets are lengths of up to `length` tokens, given for packing='buckets' and only then")

  def integers(self, training: bool) -> int:
    if self.packing == "windows":
      return 1
    return 1 + len(self.buckets) if self.packing == "buckets" and training else 2

  def packers(self, documents: Documents, streams: Iterable[int]) -> dict[int, Packer]:
    documents.refuse_other_tokenizers()
    if self.packing == "windows":
      ids, size = documents.whole
      return {s: Windows(ids, size, self.length, documents.seed, s) for s in streams}
    if self.packing == "buckets":
      buckets, order = (self.length,), [0]  # of a single pass, all rows have one length
      if documents.seed is not None:
        buckets, order = tuple(sorted(self.buckets)), self._bucket_order(documents)
      return {s: Buckets(buckets, order) for s in streams}
    kind = Concatenate if self.packing == "concatenate" else FirstFit
    return {s: kind(self.length) for s in streams}

  def _bucket_order(self, documents: Documents) -> list[int]:
    """Returns a period in which each bucket comes as often as documents of its lengths do."""
    source = documents.source
    sample = (documents.encode(source[i]) for i in range(0, len(source), max(len(source) // SAMPLE, 1)))
    lengths = [len(found[0]) - 1 for found in sample if not isinstance(found, BadRecord) and len(found[0])]
    if not lengths:
      raise UserError("data: the source holds no text")
    numbers = np.minimum(np.searchsorted(sorted(self.buckets), lengths), len(self.buckets) - 1)
    counts = proportions(np.bincount(numbers, minlength=len(self.buckets)))
    return schedule(counts).tolist()
