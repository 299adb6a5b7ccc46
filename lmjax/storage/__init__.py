"""Saved models in every format; see `lmjax.storage.base`."""

from lmjax.storage.base import BEST, Leaf, LoadedModel, SavedModel, Step, open

__all__ = ["BEST", "Leaf", "LoadedModel", "SavedModel", "Step", "open"]
