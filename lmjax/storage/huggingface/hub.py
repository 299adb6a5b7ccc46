"""Folders of the Hugging Face Hub."""

from lmjax.utils.errors import UserError

FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


def download(name: str) -> str:
  """Returns the local folder of `owner/name`, downloaded with huggingface_hub.

  Raises:
    UserError: huggingface_hub is not installed, or the download failed.
  """
  try:
    from huggingface_hub import snapshot_download
  except ImportError as error:
    raise UserError("convert: hf: needs huggingface_hub: pip install huggingface_hub") from error
  try:
    return snapshot_download(name, allow_patterns=FILES)
  except Exception as error:  # of many types, from its network library
    raise UserError(f"convert: hf:{name} could not be downloaded: {str(error).splitlines()[0][:200]}") from error
