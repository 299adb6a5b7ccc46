"""lmjax: one readable JAX codebase for every kind of language model."""

__version__ = "0.1.0"
