"""Models of the Hugging Face Hub, by names such as hf:owner/name, with the library huggingface_hub.

What is downloaded stays in that library's own cache, from which it is read without a network.
"""

import functools
import os
import pathlib
import re
import sys
from typing import Any

from lmjax.utils.errors import UserError, reason

PREFIX = "hf:"
NAME = re.compile(r"hf:(?P<name>[\w.-]+/[\w.-]+|[\w.-]+(?=@|$))(?P<inner>(/[^/@]+)*)(@(?P<revision>.+))?")
SHAPE = "a name on the Hub is hf:owner/name, hf:owner/name@REVISION or hf:owner/name/FILE.gguf"
FILES = ("*.json", "*.txt", "*.model", "*.spm", "*.bpe", "*.jinja")
WEIGHTS = ("*.safetensors", "*.msgpack", "*.hdf5", "checkpoints/*", "*.gguf")  # the first that a repository has
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


@functools.cache
def download(path: str, weights: bool = True) -> str:
  """Returns where hf:owner/name[/folder or file][@revision] lies on this machine, after a download.

  Args:
    weights: also of the model's weights; a tokenizer needs the small files alone.

  Raises:
    UserError: huggingface_hub is not installed; the name, the revision or its weights do not exist; the Hub cannot be
      reached, or does not give them.
  """
  match = NAME.fullmatch(path)
  if match is None or ".." in path:
    raise UserError(f"{path} is not a name: {SHAPE}")
  name, inner, revision = match["name"], match["inner"][1:], match["revision"]
  hub = _library()
  try:
    if inner.endswith(".gguf"):
      return os.path.join(hub.snapshot_download(name, revision=revision, allow_patterns=[inner]), inner)
    small = [os.path.join(inner, pattern) for pattern in FILES]
    first, *others = (os.path.join(inner, pattern) for pattern in WEIGHTS)
    snapshot = pathlib.Path(hub.snapshot_download(name, revision=revision, allow_patterns=small + [first] * weights))
    for pattern in others if weights else ():
      if any(any((snapshot / inner).glob(f"**/{known}")) for known in WEIGHTS):
        break
      if pattern.endswith(".gguf"):
        _refuse_several(path, hub.HfApi().list_repo_files(name, revision=snapshot.name))
      hub.snapshot_download(name, revision=snapshot.name, allow_patterns=[pattern])
  except UserError:
    raise
  except Exception as error:  # of many types, some of them of its network library
    raise UserError(f"{path} {_explain(error, revision)}") from error
  folder = snapshot / inner
  if not folder.exists() or not any(folder.iterdir()):
    raise UserError(f"{path} has no files of a model or a tokenizer ({', '.join(FILES + WEIGHTS)})")
  return os.fspath(folder)


def resolved(path: str, folder: str) -> str:
  """Returns a name on the Hub with the commit of the folder that was downloaded."""
  commit = re.search(r"/snapshots/([0-9a-f]{40})(/|$)", folder)
  return f"{path.partition('@')[0]}@{commit[1]}" if commit else path


def check_push(name: str) -> str:
  """Returns the name of a repository to write, owner/name, before the work is done.

  Raises:
    UserError: huggingface_hub is not installed, there is no token, or it is not such a name.
  """
  name = name.removeprefix(PREFIX)
  if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
    raise UserError(f"convert: --push {name}: give owner/name, the repository to write")
  if not _library().get_token():
    raise UserError(f"convert: --push needs a token of the Hub that may write: {LOG_IN}")
  return name


def push(name: str, path: str, private: bool = False) -> str:
  """Uploads a folder, or a file, to a repository, which is made if it is not there; returns its address.

  Raises:
    UserError: the Hub cannot be reached, or does not accept it.
  """
  api = _library().HfApi()
  try:
    address = str(api.create_repo(name, private=private or None, exist_ok=True))
    message = "Upload a model with lmjax"
    if os.path.isdir(path):
      api.upload_folder(repo_id=name, folder_path=path, commit_message=message)
    else:
      api.upload_file(repo_id=name, path_or_fileobj=path, path_in_repo=os.path.basename(path), commit_message=message)
  except Exception as error:  # of many types
    raise UserError(f"convert: --push {name} {_explain(error)}") from error
  return address


def _library() -> Any:
  try:
    import huggingface_hub.utils
  except ImportError as error:
    raise UserError("models of the Hub need huggingface_hub: pip install 'lmjax[hub]'") from error
  huggingface_hub.utils.logging.set_verbosity_error()  # a failure is described in one line
  if not sys.stderr.isatty():  # a log would have a line for every second of a download
    huggingface_hub.utils.disable_progress_bars()
  return huggingface_hub


def _refuse_several(path: str, names: list[str]) -> None:
  """Raises UserError where a repository has GGUF files of which one has to be chosen: each is a model."""
  files = sorted(name for name in names if name.endswith(".gguf"))
  if len(files) > 1 and "-00001-of-" not in files[0]:
    raise UserError(
      f"{path} has {len(files)} GGUF files; name one: hf:owner/name/{files[0]} (or {', '.join(files[1:])})"
    )


def _explain(error: Exception, revision: str | None = None) -> str:
  """Returns why the Hub did not do what it was asked for, as it continues "hf:owner/name ...", without the token."""
  chain: list[BaseException] = [error]
  while cause := chain[-1].__cause__ or chain[-1].__context__:
    chain.append(cause)
  kinds = {kind.__name__ for link in chain for kind in type(link).__mro__}
  statuses = {getattr(getattr(link, "response", None), "status_code", None) for link in chain}
  if "GatedRepoError" in kinds:
    return f"is gated: accept its terms on its page, then {LOG_IN}"
  if "RevisionNotFoundError" in kinds:
    return f"has no revision {revision or 'main'!r}"
  if "RepositoryNotFoundError" in kinds:
    return f"does not exist, or is private: check the name, or {LOG_IN}"
  if statuses & {401, 403}:
    return f"is refused: the token is not valid, or may not do this; {LOG_IN}"
  if "HFValidationError" in kinds:
    return f"is not a name: {SHAPE}"
  if "OfflineModeIsEnabled" in kinds:
    return "is not in the cache of the Hub, and HF_HUB_OFFLINE forbids a download"
  if kinds & {"LocalEntryNotFoundError", "ConnectionError", "ConnectError", "TimeoutException"}:
    return "is not in the cache of the Hub, which could not be reached; check the network"
  token = _library().get_token()
  text = reason(error)
  return f"could not be transferred: {text.replace(token, '***') if token else text}"
