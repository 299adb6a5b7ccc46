"""The files of a Hugging Face folder besides its config.json and tensors, which a copy of the model keeps."""

import json

from etils import epath

from lmjax.storage.huggingface.sentence import read_modules, transformer_folder
from lmjax.utils.files import expand, read_json

SUFFIXES = (".json", ".jinja", ".txt", ".md", ".model", ".bpe", ".spm", ".tiktoken")
# Replaced, or about tensors that are not copied.
LEFT = (
  "config.json",
  "adapter_config.json",
  "modules.json",
  "model.safetensors.index.json",
  "pytorch_model.bin.index.json",
)
TOKENIZER = ("tokenizer", "vocab", "merges", "spiece", "special_tokens_map", "added_tokens", "encoder.json", "tekken")
FOLDERS = ("additional_chat_templates",)


def companions(folder: epath.PathLike, tokenizer: bool = True) -> dict[str, epath.Path | str]:
  """Returns {name in the copy: file, or what the file contains}.

  A Transformer module in a folder of its own moves to the top, as a model is written there.

  Args:
    tokenizer: whether the tokenizer's files and the chat templates are among them.
  """
  top = expand(folder)
  inner = transformer_folder(top)
  files: dict[str, epath.Path | str] = {}
  for where in dict.fromkeys((top, inner)):
    for file in sorted(where.iterdir()):
      if file.is_file() and (file.name.endswith(SUFFIXES) or file.name.startswith("LICENSE")) and file.name not in LEFT:
        files[file.name] = file
    for name in FOLDERS:
      files |= _tree(where / name, name)
  if not tokenizer:
    files = {name: file for name, file in files.items() if not name.startswith((*TOKENIZER, "chat_template", *FOLDERS))}
    files = {name: file for name, file in files.items() if not name.endswith((".model", ".spm", ".tiktoken"))}
  if (top / "modules.json").exists():
    entries = read_json(top / "modules.json", list)
    for entry, (_, where) in zip(entries, read_modules(top), strict=True):
      if where == inner:
        entry["path"] = ""
      elif where != top:
        files |= _tree(where, entry["path"])
    files["modules.json"] = json.dumps(entries, indent=2)
  return files


def _tree(folder: epath.Path, name: str) -> dict[str, epath.Path | str]:
  """Returns the files under a folder; {} where it does not exist."""
  if not folder.is_dir():
    return {}
  files: dict[str, epath.Path | str] = {}
  for file in sorted(folder.iterdir()):
    files |= {f"{name}/{file.name}": file} if file.is_file() else _tree(file, f"{name}/{file.name}")
  return files
