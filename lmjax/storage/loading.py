"""A trained model from a path, whatever wrote it: a run folder, or a folder in Hugging Face's or bilm-tf's format."""

import contextlib
import dataclasses
import io
import json
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from flax import linen as nn

from lmjax import checkpoint
from lmjax import config as configs
from lmjax import experiment as experiments
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.data.tokenizers.words import SPECIAL, Words
from lmjax.experiment import Experiment
from lmjax.models.heads import Classifier
from lmjax.parallel.mesh import MeshShape
from lmjax.parallel.sharding import Layout
from lmjax.state import named_parameters
from lmjax.storage import bilm, huggingface
from lmjax.storage.huggingface.load import Loaded
from lmjax.storage.lazy import LazyTensor
from lmjax.tasks.base import Task
from lmjax.tasks.bidirectional_lm import BidirectionalLM
from lmjax.tasks.causal_lm import CausalLM
from lmjax.tasks.encode import Encode
from lmjax.tasks.masked_lm import MaskedLM
from lmjax.tasks.seq2seq import Seq2Seq
from lmjax.utils import pytree
from lmjax.utils.errors import UserError
from lmjax.utils.pytree import Tree

LONGEST = 1024  # words of a text that ELMo reads here; it has no limit of its own


@dataclasses.dataclass(frozen=True)
class LoadedModel:
  """A model as it is used: task, tokenizer, longest text in tokens, where arrays live, parameters.

  run: what a run folder describes, None for other folders. step: of the checkpoint.
  """

  task: Task
  tokenizer: Tokenizer
  length: int
  layout: Layout
  params: Tree
  step: int
  settings: dict[str, Any]
  run: Experiment | None = None


def load_model(
  path: epath.PathLike, step: int | None = None, best: bool = False, dtype: str | None = None,
  overrides: dict[str, str] | None = None,
) -> LoadedModel:  # fmt: skip
  """Returns the model at a path, on the devices of this machine.

  Args:
    step: the checkpoint, by default the newest; best: the one with the lowest validation loss.
    dtype: of the computation, by default the model's own.
    overrides: of a run's config, {"data.validation.files": "..."}.

  Raises:
    UserError: nothing there can be opened, and why.
  """
  if huggingface.is_folder(path):
    return _load_huggingface(path, dtype)
  if bilm.is_folder(path):
    return _load_bilm(path, dtype)
  settings = experiments.load_config(path)
  settings["mesh"] = {}
  for key, text in (overrides or {}).items():
    configs.override(settings, key, text)
  if dtype:
    settings["model"]["dtype"] = dtype
  run = experiments.build(settings, path)
  params, step = run.load(path, checkpoint.best(path) if best else step)
  return LoadedModel(run.task, run.tokenizer, run.data.length, run.layout, params, step, settings, run)


def _load_huggingface(path: epath.PathLike, dtype: str | None) -> LoadedModel:
  loaded = huggingface.load(path)
  if loaded.tokenizer is None:
    raise UserError(f"{path} holds a model without a tokenizer: put its tokenizer.json (or vocab.txt, ...) beside it")
  task = task_of(loaded, dtype)
  layout = Layout.build(MeshShape().build(jax.local_devices()[:1]), "ddp")
  return LoadedModel(
    task, loaded.tokenizer, loaded.model.config.length, layout, shard_params(loaded, task, layout), 0, loaded.settings
  )


def _load_bilm(path: epath.PathLike, dtype: str | None) -> LoadedModel:
  """Opens ELMo's weights as bilm-tf keeps them: without the softmax, so that they embed and predict nothing."""
  model, params = bilm.load(path, len(SPECIAL))
  if dtype:
    model = type(model)(dataclasses.replace(model.config, dtype=dtype))
  task = BidirectionalLM(model, bilm.characters(path))
  layout = Layout.build(MeshShape().build(jax.local_devices()[:1]), "ddp")
  empty = task.init(jax.random.key(0), {"characters": jnp.zeros(task.spec(1, 1)["characters"].shape, jnp.int32)})
  heads = jax.tree.map(jnp.zeros_like, nn.unbox(empty["heads"]))
  params = jax.tree.map(jnp.asarray, {"model": params, "heads": heads})
  return LoadedModel(task, Words(SPECIAL, "spaces"), LONGEST, layout, params, 0, {})


def task_of(loaded: Loaded, dtype: str | None = None) -> Task:
  """Returns what the model of a folder does, by the heads it has."""
  model, heads = loaded.model, loaded.params["heads"]
  if dtype:
    model = type(model)(dataclasses.replace(model.config, dtype=dtype))
  if loaded.labels:
    leaves, family = heads[loaded.labels], loaded.family
    activation, bias = family.head_activation if "dense" in leaves else "", "bias" in leaves["scores"]
    head = Classifier(model.config.width, leaves["scores"]["kernel"].shape[-1], activation, bias)
    return Encode(model, head, loaded.labels, family.pooling)
  if "masked_lm" in heads:
    return MaskedLM(model, next_sentence="next_sentence" in heads)
  if not hasattr(model, "extend") or not (model.config.tie_embeddings or "unembed" in loaded.params["model"]):
    return Encode(model)
  return Seq2Seq(model) if hasattr(model, "read") else CausalLM(model)


def shard_params(loaded: Loaded, task: Task, layout: Layout) -> Tree:
  """Returns a folder's parameters on a mesh, of which each device reads its own part and nothing else."""
  wanted = pytree.named_leaves(layout.shardings(named_parameters(task, 1, 1)))

  def leaf(name: str, mapped: LazyTensor) -> jax.Array:
    return jax.make_array_from_callback(mapped.shape, wanted[name], mapped.__getitem__)

  return pytree.map_named(leaf, loaded.params)


def main_process_output() -> contextlib.AbstractContextManager:
  """Returns a context in which one host prints and the others, which compute the same, are quiet."""
  return contextlib.redirect_stdout(io.StringIO()) if jax.process_index() else contextlib.nullcontext()


def sentence_settings(path: epath.PathLike) -> dict[str, Any]:
  """Returns how a sentence-transformers folder pools and scales: {"pooling", "normalize"}; {} where it does not say."""
  folder = epath.Path(path)
  if not (folder / "modules.json").exists():
    return {}
  try:
    modules = json.loads((folder / "modules.json").read_text())
    found: dict[str, Any] = {"normalize": any(module["type"].endswith("Normalize") for module in modules)}
    for module in modules:
      if module["type"].endswith("Pooling"):
        pooling = json.loads((folder / module["path"] / "config.json").read_text())
        for name, ours in (("mean_tokens", "mean"), ("cls_token", "first"), ("lasttoken", "last")):
          if pooling.get(f"pooling_mode_{name}"):
            found["pooling"] = ours
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(f"{folder / 'modules.json'} cannot be read: {error}") from error
  if "pooling" not in found:
    raise UserError(f"{folder}: its pooling is none of mean, cls and lasttoken")
  return found
