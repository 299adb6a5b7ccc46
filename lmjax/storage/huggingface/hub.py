"""Folders of the Hugging Face Hub."""

import pathlib

from lmjax.utils.errors import UserError, reason

FILES = ["*.json", "*.txt", "*.model", "*.jinja"]
SAFETENSORS, FLAX = "*.safetensors", "*.msgpack"


def download(name: str) -> str:
  """Returns the local folder of `owner/name`, downloaded with huggingface_hub; Flax weights if it has no safetensors.

  Raises:
    UserError: huggingface_hub is not installed, or the download failed.
  """
  try:
    from huggingface_hub import snapshot_download
  except ImportError as error:
    raise UserError("convert: hf: needs huggingface_hub: pip install huggingface_hub") from error
  try:
    folder = snapshot_download(name, allow_patterns=[*FILES, SAFETENSORS])
    if not any(pathlib.Path(folder).glob(SAFETENSORS)):
      folder = snapshot_download(name, allow_patterns=[*FILES, FLAX])
  except Exception as error:  # of many types, from its network library
    raise UserError(f"convert: hf:{name} could not be downloaded: {reason(error)}") from error
  return folder
