"""Labelled examples of TensorFlow Datasets, read without TensorFlow: GLUE, SuperGLUE and others."""

import dataclasses
import functools
from typing import Any

import numpy as np

from lmjax.data.sources.base import BadRecord
from lmjax.data.sources.choices import MultipleChoice
from lmjax.data.sources.examples import Example
from lmjax.data.sources.labelled_records import Form
from lmjax.data.sources.records import TFDS
from lmjax.utils.errors import UserError, did_you_mean


@dataclasses.dataclass(frozen=True)
class LabelledTFDS(Form):
  """A dataset of TensorFlow Datasets, read without TensorFlow: `glue/sst2`, `super_glue/boolq`.

  split, folder: as in `lmjax.data.sources.records:TFDS`. Labels have the names that the dataset gives them, but
  false and true are written as in JSON, and choices have their numbers.
  """

  name: str = ""
  split: str = "train"
  folder: str = ""

  @functools.cached_property
  def _source(self) -> TFDS:
    return TFDS(self.name, self.split, folder=self.folder)

  @functools.cached_property
  def _names(self) -> list[str]:
    features = self._source.builder.info.features
    if self.label not in features:
      raise UserError(f"data: {self.name} has no key {self.label!r}{did_you_mean(self.label, list(features))}")
    names = getattr(features[self.label], "names", None) or []
    if self.choices and isinstance(self.choices, tuple):  # such as choice1 and choice2 of COPA
      return [str(i) for i in range(len(names))]
    return [name.lower() if name in ("False", "True") else name for name in names]  # as in the files of SuperGLUE

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> Example | MultipleChoice | BadRecord:
    record, where = self._source.record(index), self._source.where(index)
    if isinstance(record, BadRecord):
      return record
    names, value = self._names, record.get(self.label)
    try:
      label = _plain(value)
      if names and not 0 <= label < len(names):
        return BadRecord(where, "has no label, as the test data of a benchmark")
      return self.example({key: _plain(v) for key, v in record.items()}, where, names[label] if names else label)
    except ValueError as error:
      return BadRecord(where, str(error))


def _plain(value: Any) -> Any:
  """Returns a value of TFDS as those of JSON are."""
  if isinstance(value, dict):
    return {key: _plain(item) for key, item in value.items()}
  if isinstance(value, np.ndarray | list | tuple) and np.ndim(value):
    return [_plain(item) for item in value]
  value = value.item() if isinstance(value, np.generic | np.ndarray) else value
  return value.decode("utf-8") if isinstance(value, bytes) else value
