"""Hugging Face folders, read and written without transformers: config.json, safetensors and tokenizer files."""

from lmjax.storage.huggingface.load import Loaded, load, read_config
from lmjax.storage.huggingface.save import save

__all__ = ["Loaded", "load", "read_config", "save"]
