"""Saved models of any format as a Hugging Face folder, a GGUF file, an adapter, or a program."""

import os

from etils import epath

from lmjax.storage import base, stablehlo
from lmjax.storage.gguf import write as gguf
from lmjax.storage.huggingface.adapter import AdapterFolder
from lmjax.storage.huggingface.folder import HuggingFaceFolder
from lmjax.storage.huggingface.save_adapter import save_adapter
from lmjax.utils.errors import UserError

SUFFIX = ".gguf"
FORMATS = ("huggingface", "peft", "stablehlo", *(f"gguf-{kind}" for kind in gguf.KINDS))


def convert(
  source: epath.PathLike,
  output: epath.PathLike,
  step: base.Step = None,
  with_tokenizer: bool = True,
  form: str | None = None,
  base_folder: epath.PathLike | None = None,
  shape: tuple[int, int] | None = None,
) -> None:
  """Writes a saved model as a Hugging Face folder, as a GGUF file, as an adapter for PEFT, or as a program.

  Args:
    base_folder: the Hugging Face folder that an adapter changes; default the one that it names, or started from.
    form: one of `FORMATS`; default what the name of the output says.
    shape: of a program's inputs [batch, length]; default any.

  Raises:
    UserError: the source cannot be read or has no equivalent in the format, or the output is there already.
  """
  name, is_gguf = os.fspath(output), os.fspath(output).endswith(SUFFIX)
  form = form or ("gguf-f16" if is_gguf else "huggingface")
  if is_gguf != form.startswith("gguf"):
    raise UserError(f"convert: {name}: the output of --format {form} must {'not ' if is_gguf else ''}end with {SUFFIX}")
  saved = base.open(source, step) if base_folder is None or form == "peft" else AdapterFolder(source, step, base_folder)
  if is_gguf:
    gguf.save(output, saved, form.removeprefix("gguf-"), with_tokenizer)
  elif form == "stablehlo":
    stablehlo.save(output, saved, with_tokenizer, shape)
  elif form == "peft":
    save_adapter(output, saved, base_folder)
  else:
    HuggingFaceFolder.save(output, saved, with_tokenizer)
