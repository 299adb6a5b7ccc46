"""What the keys of a config mean, from the documentation of the constructors that take them."""

import inspect
import re
import typing
from collections.abc import Iterator
from typing import Any

from flax import linen as nn

from lmjax import sections
from lmjax.checkpoint import CheckpointConfig
from lmjax.experiment import SECTIONS
from lmjax.logs import LogConfig
from lmjax.parallel.mesh import MeshShape

TOP = {
  "seed": "of parameters, data order and dropout",
  "steps": "of training: updates of the parameters",
  "batch": "rows in a batch, over all devices",
  "rules": "how parameters are sharded: ddp, fsdp, tp, fsdp_tp, sequence, or pairs of a logical and a mesh axis",
  "evals.every": "steps between evaluations; 0 only at the end",
  "kind": "the class, by its dotted name",
}
# Fields whose names are the field's own terms, which the classes do not explain again.
WORDS = {
  "width": "size of the vectors between layers",
  "depth": "layers",
  "heads": "attention heads; head_size: the size of each",
  "head_size": "size of an attention head's queries, keys and values",
  "mlp": "hidden size of the MLP",
  "gated_mlp": "whether the MLP has a gate, as SwiGLU and GEGLU do",
  "activation": "of the MLP: gelu, gelu_tanh, relu, silu, ...",
  "norm": "layer or rms",
  "post_norm": "whether norms follow the residual branches instead of preceding them",
  "epsilon": "added to the variance in norms",
  "bias": "whether kernels and norms have biases",
  "pooler": "whether there is a pooled vector of the first token",
  "scan": "whether the layers are one loop, which compiles faster",
  "remat": "what the backward pass computes again instead of keeping it: none, full, dots, ...",
  "dropout": "probability of dropping an activation in training",
  "cells": "cells of an LSTM layer",
  "filters": "of the character CNN: (width, number)",
  "highways": "highway layers after the character CNN",
  "tensorboard": "whether files for TensorBoard are written",
  "optimizer": "adamw, adafactor, lion, muon or sgd",
  "peak_lr": "the learning rate after the warm-up",
  "weight_decay": "decoupled, times the learning rate",
  "z_loss": "coefficient of (log Z)^2, which keeps log Z near 0",
  "chunk": "positions scored against the vocabulary at a time; 0 is all",
  "order": "of the n-grams",
  "metrics": "names of the metrics, such as accuracy and f1",
  "temperature": "by which both models' scores are divided",
  "hard_weight": "coefficient of the loss on the data",
  "soft_weight": "coefficient of the loss on the teacher's distribution",
  "hidden_weight": "coefficient of the loss on hidden vectors",
  "hidden_distance": "between hidden vectors",
  "attention_weight": "coefficient of the loss on attention weights",
  "values_weight": "coefficient of the loss on relations of values",
  "attention_distance": "between attention weights",
  "beta": "coefficient of the divergence from the reference model",
  "form": "of the loss on preferences",
  "margin": "between chosen and rejected answers",
  "smoothing": "probability that a label is wrong",
  "clip": "how far the ratio of probabilities may be from 1",
  "value_clip": "how far a new value may be from the old one",
  "value_coefficient": "coefficient of the loss of the values",
  "kl": "coefficient of the divergence from the reference model",
  "kl_estimator": "how that is estimated from samples",
  "kl_horizon": "answers over which its coefficient adapts",
  "per_token": "whether log-probabilities are means over tokens instead of sums",
}
CLASSES = SECTIONS | {"mesh": MeshShape, "checkpoint": CheckpointConfig, "log": LogConfig}


def keys(config: dict[str, Any]) -> Iterator[tuple[str, Any, str]]:
  """Yields (key, value, meaning) of all keys of a config, those with defaults included."""
  for key, value in config.items():
    if key == "evals":
      yield "evals.every", value.get("every", 0), TOP["evals.every"]
      for name, evaluator in value.items():
        if name != "every":
          yield from _section(f"evals.{name}", evaluator, None)
    elif isinstance(value, dict):
      yield from _section(key, value, CLASSES.get(key))
    else:
      yield key, value, TOP.get(key, "")


def _section(where: str, spec: dict[str, Any], cls: Any) -> Iterator[tuple[str, Any, str]]:
  if "kind" in spec:
    cls = sections.resolve(spec["kind"], f"{where}.kind")
  explained = meanings(cls)
  for key, value in sections.complete(spec, where, cls).items():
    if isinstance(value, dict) and "kind" in value:
      yield f"{where}.{key}.kind", value["kind"], explained.get(key, TOP["kind"])
      inner = (row for row in _section(f"{where}.{key}", value, None) if not row[0].endswith(f"{key}.kind"))
      yield from inner
    elif isinstance(value, dict) and key == "tokenizer":
      yield from _section(f"{where}.{key}", value, typing.get_type_hints(cls).get(key))
    elif where == "mesh":
      yield f"{where}.{key}", value, f"devices along the axis {key}; -1 for the remaining ones"
    else:
      value = {} if repr(value) == "<factory>" else value  # the default of a dataclass: a new dict
      yield f"{where}.{key}", value, explained.get(key, TOP["kind"] if key == "kind" else WORDS.get(key, ""))


def meanings(cls: Any) -> dict[str, str]:
  """Returns what the documentation of a class says about its fields: `key: ...` in docstrings, comments of fields."""
  hints = typing.get_type_hints(cls)
  if isinstance(cls, type) and issubclass(cls, nn.Module) and "config" in hints:
    return meanings(hints["config"])
  words: dict[str, str] = {}
  for base in reversed(inspect.getmro(cls) if isinstance(cls, type) else (cls,)):
    if not getattr(base, "__module__", "").startswith(("builtins", "typing", "flax")):
      words |= _of_docstring(base, inspect.signature(cls).parameters) | _of_comments(base)
  return words


def _of_docstring(cls: Any, fields: Any) -> dict[str, str]:
  names = "|".join(map(re.escape, fields))
  words: dict[str, str] = {}
  for paragraph in inspect.cleandoc(cls.__doc__ or "").split("\n\n"):
    text = " ".join(paragraph.split())
    starts = [*re.finditer(rf"(?:^|(?<=[.;:] ))((?:{names})(?:, (?:{names}))*): ", text)] if names else []
    for match, after in zip(starts, [*starts[1:], None], strict=False):
      meaning = text[match.end() : after.start() if after else None].strip(" .")
      words |= dict.fromkeys(match[1].split(", "), meaning)
    for name in fields:  # a sentence about `name`
      sentence = re.search(rf"[^.]*`{re.escape(name)}`[^.]*", text)
      if sentence:
        words.setdefault(name, sentence[0].strip())
  return words


def _of_comments(cls: Any) -> dict[str, str]:
  try:
    source = inspect.getsource(cls)
  except (OSError, TypeError):
    return {}
  return dict(re.findall(r"^  (\w+): [^#\n]*#\s*(.+)$", source, re.MULTILINE))
