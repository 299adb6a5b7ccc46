"""Models in Hugging Face's format, in and out: config.json, safetensors, tokenizer files; without transformers."""

from lmjax.storage.huggingface.load import Loaded, is_folder, load, read_config
from lmjax.storage.huggingface.save import save

__all__ = ["Loaded", "is_folder", "load", "read_config", "save"]
