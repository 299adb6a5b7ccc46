"""Saved models in every format; see `lmjax.storage.base`."""

from lmjax.storage.base import Leaf, LoadedModel, SavedModel, open

__all__ = ["Leaf", "LoadedModel", "SavedModel", "open"]
