"""Tokenizers: text to ids and back."""

from lmjax.data.tokenizers.registry import load

__all__ = ["load"]
