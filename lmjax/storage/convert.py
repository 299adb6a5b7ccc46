"""Saved models of any format as a Hugging Face folder, or as a GGUF file."""

import os

from etils import epath

from lmjax.storage import base
from lmjax.storage.gguf import write as gguf
from lmjax.storage.huggingface.folder import HuggingFaceFolder
from lmjax.utils.errors import UserError

SUFFIX = ".gguf"
FORMATS = ("huggingface", *(f"gguf-{kind}" for kind in gguf.KINDS))


def convert(
  source: epath.PathLike,
  output: epath.PathLike,
  step: int | None = None,
  with_tokenizer: bool = True,
  form: str | None = None,
) -> None:
  """Writes a saved model as a Hugging Face folder or as a GGUF file.

  Args:
    form: one of `FORMATS`; default what the name of the output says.

  Raises:
    UserError: the source cannot be read or has no equivalent in the format, or the output is there already.
  """
  name, is_gguf = os.fspath(output), os.fspath(output).endswith(SUFFIX)
  form = form or ("gguf-f16" if is_gguf else "huggingface")
  if is_gguf != form.startswith("gguf"):
    raise UserError(f"convert: {name}: the output of --format {form} must {'not ' if is_gguf else ''}end with {SUFFIX}")
  saved = base.open(source, step)
  if is_gguf:
    gguf.save(output, saved, form.removeprefix("gguf-"), with_tokenizer)
  else:
    HuggingFaceFolder.save(output, saved, with_tokenizer)
