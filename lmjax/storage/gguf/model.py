"""GGUF files as saved models."""

import contextlib
import dataclasses
import functools
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

from lmjax.data.tokenizers.base import Tokenizer
from lmjax.models import decoder
from lmjax.storage.base import Leaf, Step, refuse_step
from lmjax.storage.gguf.config import Architecture, NamedTensors, name_tensors, read_architecture, read_config
from lmjax.storage.gguf.file import GGUF
from lmjax.storage.gguf.tokenizer import special_ids, tokenizer_files
from lmjax.storage.huggingface.folder import HuggingFaceFolder
from lmjax.storage.huggingface.load import Loaded, assemble, load_tokenizer
from lmjax.utils.files import write


@dataclasses.dataclass(frozen=True)
class QuantizedLeaf(Leaf):
  """A tensor whose values share bytes; `dtype` is the name of its type in GGUF."""

  size: int = 0

  @property
  def bytes(self) -> int:
    return self.size


class GGUFFile(HuggingFaceFolder):
  """A GGUF file of a decoder, seen as the Hugging Face folder that it was made from."""

  def __init__(self, path: epath.PathLike, step: Step = None):
    refuse_step(path, step)
    self.path = self.folder = epath.Path(path)

  @functools.cached_property
  def _gguf(self) -> GGUF:
    return GGUF(self.path)

  @functools.cached_property
  def _architecture(self) -> Architecture:
    return read_architecture(self._gguf)

  @functools.cached_property
  def _config(self) -> decoder.Config:
    return read_config(self._gguf, self._architecture)

  @functools.cached_property
  def _loaded(self) -> Loaded:
    family, names = name_tensors(self._architecture, self._config)
    tensors = NamedTensors(self._gguf, self._architecture, self._config, names)
    return assemble(self.path, self.config, family, self._config, tensors)

  @functools.cached_property
  def leaves(self) -> dict[str, Leaf]:
    leaves: dict[str, Leaf] = {}
    for name, tensor in self._gguf.tensors.items():
      name = name.replace(".", "/")
      leaves[name] = QuantizedLeaf(name, tensor.shape, tensor.kind.lower(), size=tensor.bytes)
    return leaves

  def read(self, name: str) -> np.ndarray:
    return np.asarray(self._gguf.array(name.replace("/", ".")))

  @functools.cached_property
  def config(self) -> dict[str, Any]:
    family, _ = name_tensors(self._architecture, self._config)
    return family.to_hf(self._config) | special_ids(self._gguf)

  @functools.cached_property
  def tokenizer(self) -> Tokenizer | None:
    with self.tokenizer_folder() as folder:
      return load_tokenizer(folder, self._config.vocabulary)

  @contextlib.contextmanager
  def tokenizer_folder(self) -> Iterator[epath.Path]:
    with tempfile.TemporaryDirectory() as folder:
      for name, text in tokenizer_files(self._gguf).items():
        write(epath.Path(folder) / name, text)
      yield epath.Path(folder)

  def files(self) -> dict[str, epath.Path]:
    return {file.name: file for file in self._gguf.files}
