"""Rows of sentences whose words have tags; the first token of a word carries its tag (Devlin et al., 2019)."""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from lmjax.data.documents import Documents
from lmjax.data.objectives.labelled import Labelled, LabelledDocuments, examples
from lmjax.data.sources.base import BadRecord, Source
from lmjax.data.sources.examples import Tagged
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Tagging(Labelled):
  """A row for each sentence of a source of `lmjax.data.sources.conll`; what is longer than a row is cut off.

  labels: the tags, `O` first; by default those of the training data. class_weights: {tag: loss weight}.
  """

  in_order: ClassVar[bool] = True
  debug_source: ClassVar[str] = "lmjax.data.sources.labelled_pairs:PythonDocTags"
  kinds: ClassVar[tuple[type, str]] = (Tagged, "tagged sentences: use a source of lmjax.data.sources.conll")

  def learned(self) -> dict[str, Any]:
    if self.labels:
      return {}
    tags = {tag for sentence in examples(self.source, self.kinds) for tag in sentence.tags}
    if len(tags) < 2:
      raise UserError("data: the training data has fewer than two tags")
    return {"labels": tuple(sorted(tags, key=lambda tag: (tag != "O", tag)))}

  def make_tokenizer(self) -> Tokenizer:
    return self.tokenizer.make(" ".join(sentence.words) for sentence in examples(self.source, self.kinds))

  def documents(self, source: Source, tokenizer: Tokenizer, seed: int | None, streams: int) -> Documents:
    return TaggedDocuments(self, source, tokenizer, seed, streams)


class TaggedDocuments(LabelledDocuments):
  """Sentences as rows without padding, with `tags` [T], and `weights` [T] that are 0 but on the first of a word."""

  requires = "tagged sentences"

  def encode_text(self, document: Any) -> Any:
    if not isinstance(document, Tagged):
      raise UserError(f"data: the rows need {Tagging.kinds[1]}")
    unknown = next((tag for tag in document.tags if tag not in self.numbers), None)
    if unknown is not None:
      return BadRecord(document.where, f"has the tag {unknown!r}, which is not one of the run's")
    row, first = self.arrangement.words(document.words)
    size = len(np.asarray(row["inputs"]))
    row |= {"tags": np.zeros(size, np.int32), "weights": np.zeros(size, np.float32), "row_weights": np.float32(1)}
    for place, tag in zip(first, document.tags, strict=True):
      if place >= 0:
        row["tags"][place] = self.numbers[tag]
        row["weights"][place] = self.reader.class_weights.get(tag, 1.0)
    return [row], len(" ".join(document.words).encode("utf-8"))
