"""The tokenizer of a saved model of any format, for the config of a run that starts from it."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from lmjax.data.tokenizers.registry import TokenizerConfig
from lmjax.storage import base
from lmjax.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class SavedTokenizer(TokenizerConfig):
  """The tokenizer of the saved model at `path`: a run folder, a Hugging Face folder or a GGUF file.

  size: of its vocabulary.
  """

  def make(self, texts: Iterable[str]) -> Any:
    tokenizer = base.open(self.path).tokenizer
    if tokenizer is None or tokenizer.end is None:
      raise UserError(f"tokenizer: {self.path} has no {'end' if tokenizer else 'tokenizer'}, which training needs")
    return tokenizer

  def expected(self, size: int | None = None) -> Any:
    return super().expected(size or self.size)  # for planning, the size alone counts
