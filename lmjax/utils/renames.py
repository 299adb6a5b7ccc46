"""The names that older versions used: tables for reading the configs, run folders and checkpoints that they wrote."""

import re
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from flax import traverse_util

# Dotted names, `package.module:Name`; a module alone stands for every name in it.
MOVED: dict[str, str] = {
  "lmjax.data.sources.labelled_pairs:AsText": "lmjax.data.sources.as_text:AsText",
  "lmjax.data.sources": "lmjax.data.sources.text",
  "lmjax.data.tables": "lmjax.data.sources.records",
  "lmjax.data.text_pairs": "lmjax.data.sources.pairs",
  "lmjax.data.corpus": "lmjax.data.sources.python_docs",
  "lmjax.data.prepared": "lmjax.data.sources.shards",
  "lmjax.data.pairs": "lmjax.data.objectives.masked_lm",
  "lmjax.data.seq2seq": "lmjax.data.objectives.seq2seq",
  "lmjax.data.denoising": "lmjax.data.objectives.denoising",
  "lmjax.data.both_ways": "lmjax.data.objectives.bidirectional",
  "lmjax.data.words": "lmjax.data.tokenizers.words",
  "lmjax.data.sentinels": "lmjax.data.tokenizers.sentinels",
  "lmjax.data.tokenizers": "lmjax.data.tokenizers.registry",
  "lmjax.models.encdec": "lmjax.models.encoder_decoder",
  "lmjax.tasks.bilm": "lmjax.tasks.bidirectional_lm",
  "lmjax.evals.commonest": "lmjax.evals.baselines.unigram",
  "lmjax.evals.held_out": "lmjax.evals.validation_loss",
  "lmjax.evals.ngrams": "lmjax.evals.baselines.ngrams",
  "lmjax.evals.kneser_ney": "lmjax.evals.baselines.kneser_ney",
  "lmjax.data.corpus:gutenberg_body": "lmjax.data.sources.text:gutenberg_body",
  "lmjax.data.pipeline:Text": "lmjax.data.objectives.causal:Text",
  "lmjax.data.sources:JsonLines": "lmjax.data.sources.records:JsonLines",
  "lmjax.data.corpus:Embedded": "lmjax.data.sources.python_docs:PythonDocs",
  "lmjax.data.corpus:EmbeddedPairs": "lmjax.data.sources.python_docs:PythonDocPairs",
  "lmjax.data.both_ways:BothWays": "lmjax.data.objectives.bidirectional:BidirectionalText",
  "lmjax.data.seq2seq:Denoising": "lmjax.data.objectives.denoising:Denoising",
  "lmjax.data.denoising:Denoisers": "lmjax.data.objectives.denoising:MixtureOfDenoisers",
  "lmjax.data.tokenizers:Settings": "lmjax.data.tokenizers.registry:TokenizerConfig",
  "lmjax.data.words:Settings": "lmjax.data.tokenizers.words:WordTokenizerConfig",
  "lmjax.data.sentinels:Settings": "lmjax.data.tokenizers.sentinels:SentinelTokenizerConfig",
  "lmjax.evals.commonest:Commonest": "lmjax.evals.baselines.unigram:UnigramBaseline",
  "lmjax.evals.held_out:HeldOut": "lmjax.evals.validation_loss:ValidationLoss",
  "lmjax.tasks.bilm:BiLM": "lmjax.tasks.bidirectional_lm:BidirectionalLM",
  # Since format 2.
  "lmjax.data.objectives.seq2seq:Denoising": "lmjax.data.objectives.denoising:Denoising",
  "lmjax.compression.base:Chain": "lmjax.compression.chain:Chain",
}

# Keys of a config by their section, or by the class that the section names; `data.source` is also the section of the
# validation data and of the parts of a mixture.
KEYS: dict[str, dict[str, str]] = {
  "model": {
    "groups": "kv_heads", "tied": "tie_embeddings", "gated": "gated_mlp", "scaled": "scale_scores",
    "furthest": "max_distance", "buckets": "num_buckets", "types": "token_types",
  },
  "task": {"predictions": "max_predictions"},
  "optim": {
    "rule": "optimizer", "peak_rate": "peak_lr", "rates": "lr_multipliers", "final": "final_lr_ratio",
    "decayed": "decay_pattern",
  },
  "data": {
    "predictions": "max_predictions", "masked": "mask_rate", "short": "short_seq_prob", "other": "negatives",
    "split": "split_by", "ahead": "prefetch",
  },
  "data.tokenizer": {"split": "split_by"},
  "data.source": {"part": "split", "scattered": "shuffle", "piece": "chunk_bytes"},
  "data.objective": {"density": "noise_density", "mean": "mean_span_length"},
  "lmjax.evals.generation:Generation": {"new": "max_new_tokens", "penalty": "length_penalty"},
}  # fmt: skip
VALUES = {("data", "negatives", "this"): "same_document", ("data.source", "document", "piece"): "chunk"}
AXES = {"groups": "kv_heads", "stream": "residual_length"}

# Parameters: (old, new) ends of a path; {n} is a number, {rest} anything.
PARAMETERS = (
  ("decoder/layers/own/{rest}", "decoder/layers/self_attention/{rest}"),
  ("decoder/layers/own_norm/{rest}", "decoder/layers/self_attention_norm/{rest}"),
  ("decoder/layers/other/{rest}", "decoder/layers/cross_attention/{rest}"),
  ("decoder/layers/other_norm/{rest}", "decoder/layers/cross_attention_norm/{rest}"),
  ("decoder/layers/feed/{rest}", "decoder/layers/mlp/{rest}"),
  ("decoder/layers/feed_norm/{rest}", "decoder/layers/mlp_norm/{rest}"),
  ("types/table", "token_types/table"),
  *(
    (f"{layer}_{{n}}/{name}", f"{layer}_{{n}}/{name}/kernel")
    for layer in ("layers", "forwards", "backwards")
    for name in ("hidden", "project")
  ),
  ("words/filter_{n}", "words/filter_{n}/kernel"),
  ("words/bias_{n}", "words/filter_{n}/bias"),
)


def dotted(name: str) -> str:
  """Returns the present form of a dotted name `package.module:Name`."""
  module, _, attribute = name.partition(":")
  return MOVED.get(name) or f"{MOVED.get(module, module)}:{attribute}"


def parameter(name: str) -> str:
  """Returns the present path of a parameter, from its path in format 1."""
  return _rename(name, PARAMETERS)


def old_parameter(name: str) -> str:
  """Returns the path of a parameter in format 1, from its present path."""
  return _rename(name, ((new, old) for old, new in PARAMETERS))


def _rename(name: str, table: Iterable[tuple[str, str]]) -> str:
  for source, target in table:
    pattern = source.replace("{n}", r"(?P<n>\d+)").replace("{rest}", "(?P<rest>.+)")
    if match := re.search(rf"(?<![a-z_]){pattern}$", name):
      return name[: match.start()] + target.format(**match.groupdict())
  return name


def old_items(items: dict[str, Any]) -> dict[str, Any]:
  """Returns the items of a checkpoint as format 1 called them, and without what it did not have."""
  old = {"state": tree(items["state"], old_parameter)}
  if "data_state" in items:
    old["place"] = {key: value for key, value in items["data_state"].items() if key != "collects"}
  return old


def new_items(items: dict[str, Any], step: int) -> dict[str, Any]:
  """Returns the items of a checkpoint of format 1 in the names of today; every step of such a run is a collect."""
  new = {"state": tree(items["state"], parameter)}
  if "place" in items:
    new["data_state"] = items["place"] | {"collects": np.asarray(step, np.int64)}
  return new


def tree(state: Any, rename: Callable[[str], str]) -> Any:
  """Returns a tree in which the parameters of every nested dict are renamed: those of an optimizer's moments too."""
  if not isinstance(state, dict):
    return jax.tree.map(lambda node: tree(node, rename) if isinstance(node, dict) else node, state, is_leaf=_is_dict)
  flat = traverse_util.flatten_dict(state, keep_empty_nodes=True, sep="/")
  empty = traverse_util.empty_node
  renamed = {rename(path): value if value is empty else tree(value, rename) for path, value in flat.items()}
  return traverse_util.unflatten_dict(renamed, sep="/")


def _is_dict(node: Any) -> bool:
  return isinstance(node, dict)


def config(settings: dict[str, Any]) -> dict[str, Any]:
  """Returns the plain data of a config with old keys, values and axis names replaced; new ones stay as they are."""
  upgraded = {key: section(value, key) for key, value in settings.items()}
  if isinstance(upgraded.get("rules"), list | tuple):
    pairs = lambda rule: isinstance(rule, list | tuple) and rule and isinstance(rule[0], str)  # noqa: E731
    upgraded["rules"] = [[AXES.get(r[0], r[0]), *r[1:]] if pairs(r) else r for r in upgraded["rules"]]
  return upgraded


def section(value: Any, where: str) -> Any:
  """Returns a section of a config, upgraded with everything in it.

  Args:
    where: the keys that lead to it, joined by dots.
  """
  if isinstance(value, list):
    return [section(item, where) for item in value]
  if not isinstance(value, dict):
    return value
  table = KEYS.get(where, {}) | KEYS.get(str(value.get("kind")), {})
  upgraded: dict[str, Any] = {}
  if where == "data.source" and {"part", "split"} <= set(value):  # a named split and a part of it
    value = {key: v for key, v in value.items() if key != "part"} | {
      "split": f"{value['split']}[{value['part']}]" if value["part"] else value["split"]
    }
  for key, item in value.items():
    name = table.get(key, key)
    item = VALUES.get((where, name, item), item) if isinstance(item, str) else item
    if isinstance(item, str) and re.fullmatch(r"lmjax(\.\w+)+:\w+", item):
      item = dotted(item)
    inner = "data.source" if where == "data" and key == "validation" else f"{where}.{key}"
    if where in ("data.source", "data.objective") and isinstance(item, dict):
      inner = where  # parts of a mixture
    upgraded[name] = section(item, inner)
  return upgraded
