"""Rows of two texts that are read apart, with a number that says how alike they are."""

import dataclasses
from typing import Any, ClassVar

from lmjax.data.documents import Documents
from lmjax.data.objectives.arrange import Arrangement
from lmjax.data.objectives.labelled import Labelled, LabelledDocuments
from lmjax.data.sources.base import BadRecord, Source
from lmjax.data.sources.examples import Example
from lmjax.data.tokenizers.base import Tokenizer


@dataclasses.dataclass(frozen=True)
class Similarity(Labelled):
  """A row for each pair of a source of `lmjax.data.sources.labelled`: its texts are the segments 1 and 2."""

  regression: bool = True
  debug_source: ClassVar[str] = "lmjax.data.sources.labelled_pairs:PythonDocComparisons"

  def __post_init__(self):
    super().__post_init__()
    if not self.regression or self.class_weights or self.symmetric:
      raise ValueError("a similarity is a number, without class_weights and without a symmetric order")

  def arrangement(self, tokenizer: Tokenizer) -> Arrangement:
    return dataclasses.replace(super().arrangement(tokenizer), apart=True)

  def documents(self, source: Source, tokenizer: Tokenizer, seed: int | None, streams: int) -> Documents:
    return SimilarityDocuments(self, source, tokenizer, seed, streams)


class SimilarityDocuments(LabelledDocuments):
  """Pairs as rows without padding."""

  def encode_text(self, document: Any) -> Any:
    if isinstance(document, Example) and document.other is None:
      return BadRecord(document.where, "has one text, and a similarity is that of two")
    return super().encode_text(document)
