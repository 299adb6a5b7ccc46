"""Hugging Face folders as saved models."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath
from flax import linen as nn
from flax import traverse_util

from lmjax.data.tokenizers.base import Tokenizer
from lmjax.data.tokenizers.special import Template
from lmjax.models.heads import Classifier
from lmjax.models.image_decoder import ImageDecoder
from lmjax.state import named_parameters
from lmjax.storage.base import LazyArray, Leaf, LoadedModel, SavedModel, Step, refuse_step, replace_dtype
from lmjax.storage.huggingface.load import Loaded, load, open_tensors, read_config
from lmjax.storage.huggingface.save import bare, family_of, save
from lmjax.storage.huggingface.sentence import transformer_folder
from lmjax.storage.placement import layout_of
from lmjax.tasks.base import Task
from lmjax.tasks.causal_lm import CausalLM
from lmjax.tasks.downstream import START, Downstream
from lmjax.tasks.encode import Encode
from lmjax.tasks.image_lm import ImageLM
from lmjax.tasks.masked_lm import MaskedLM
from lmjax.tasks.ranking import Ranking
from lmjax.tasks.seq2seq import Seq2Seq
from lmjax.utils import files, pytree, trust
from lmjax.utils.errors import UserError
from lmjax.utils.fields import Fields
from lmjax.utils.pytree import Tree


class HuggingFaceFolder(SavedModel):
  """A folder with config.json and safetensors (or flax_model.msgpack); tensors are mapped, and read slice by slice."""

  def __init__(self, path: epath.PathLike, step: Step = None):
    refuse_step(path, step)
    self.folder = epath.Path(path)
    self.path = transformer_folder(self.folder)

  @functools.cached_property
  def _tensors(self):
    return open_tensors(self.path)

  @functools.cached_property
  def _loaded(self) -> Loaded:
    with trust.trusting(*self.trusted):
      return load(self.path)

  @functools.cached_property
  def leaves(self) -> dict[str, Leaf]:
    tensors = self._tensors
    leaves = (Leaf(name.replace(".", "/"), tensors.shape(name), tensors.dtype(name).name) for name in tensors)
    return {leaf.name: leaf for leaf in leaves}

  def read(self, name: str) -> np.ndarray:
    return np.asarray(self._tensors[name.replace("/", ".")])

  @functools.cached_property
  def config(self) -> dict[str, Any]:
    return read_config(self.path)[0]

  @functools.cached_property
  def task(self) -> Task:
    return task_of(self._loaded)

  @property
  def tokenizer(self) -> Tokenizer | None:
    return self._loaded.tokenizer

  @contextlib.contextmanager
  def tokenizer_folder(self) -> Iterator[epath.Path]:
    """Yields a folder with the tokenizer's files, there as long as the block runs."""
    yield self.folder

  @functools.cached_property
  def named(self) -> Tree:
    named, there = named_parameters(self.task, 1, 1), self.parameters()
    for part, leaf in (("unembed", "table"), ("unembed_bias", "bias")):
      if f"model/{part}/{leaf}" not in there:  # of a base model, which scores no tokens
        named["model"].pop(part, None)
    return named

  def parameters(self) -> dict[str, LazyArray]:
    return pytree.named_leaves(self._loaded.params)

  def load(self, dtype: str | None = None, overrides: dict[str, str] | None = None) -> LoadedModel:
    if self.tokenizer is None:
      raise UserError(f"{self.path} has no tokenizer; put its tokenizer.json (or vocab.txt, ...) beside config.json")
    layout = layout_of(overrides)
    task = replace_dtype(self.task, dtype) if dtype else self.task
    params = self.arrays(self.named, layout)
    images = self._preprocessor()
    settings = self.config | ({"preprocessor_config": images} if images else {})
    return LoadedModel(task, self.tokenizer, task.model.config.length, layout, params, 0, settings)

  def _preprocessor(self) -> dict[str, Any]:
    """Returns how images are made what the model reads, by the files that say it; empty where there is none."""
    for name, key in (("preprocessor_config.json", ""), ("processor_config.json", "image_processor")):
      settings = files.read_json(self.path / name) if (self.path / name).exists() else {}
      if settings := settings.get(key) if key else settings:
        return settings if isinstance(settings, dict) else {}
    return {}

  def files(self) -> dict[str, epath.Path]:
    return {file.name: file for file in (self.path / "config.json", *self._tensors.files)}

  @classmethod
  def save(cls, folder: epath.PathLike, source: SavedModel, with_tokenizer: bool = True) -> None:
    """Writes a saved model as a Hugging Face folder; from another such folder, one layer is in memory at a time.

    Settings, tokenizer, chat templates and the modules of sentence-transformers are kept as they are.

    Raises:
      UserError: the model has no Hugging Face equivalent, or the folder is not empty.
    """
    params = {"heads": {}} | traverse_util.unflatten_dict(source.parameters(), sep="/")
    if isinstance(source, HuggingFaceFolder):
      with source.tokenizer_folder() as files:
        save(folder, source.task.model, params, settings=source.config, files=files, with_tokenizer=with_tokenizer)
    else:
      tokenizer = source.tokenizer if with_tokenizer else None
      if isinstance(source.task, Ranking):
        params = params | {"heads": _choice(source.task.model, params["heads"])}
      template = _template_of(source) if tokenizer is not None else None
      save(folder, source.task.model, params, tokenizer, settings_of(source.task), template=template)


def _template_of(source: SavedModel) -> Template | None:
  """Returns what surrounds the texts that a decoder classifies, whose last token its head reads; None for others."""
  arrangement = getattr(getattr(source, "experiment", None), "data", None)
  if not isinstance(source.task, Downstream) or source.task.model.kind != "decoder" or arrangement is None:
    return None
  arrangement = arrangement.arrangement(source.tokenizer)
  if arrangement.symmetric:
    print("convert: the model adds the vectors of a pair in both orders; transformers reads one of them")
  template: Template = arrangement.template
  return template


def _choice(model: nn.Module, heads: Tree) -> Tree:
  """Returns the head that ranks choices under the name of a class for them, where the family has one like it.

  Elsewhere it stays a classifier of sequences with one score, which ranks the same choices.
  """
  known = family_of(model).heads(model.config)
  same = [[weight.hf for weight in known.get(head, ())] for head in ("sequence", "choice")]
  return {"choice": heads["sequence"]} if same[0] == same[1] and set(heads) == {"sequence"} else heads


def settings_of(task: Task) -> dict[str, Any]:
  """Returns the keys of config.json that name what a downstream task predicts."""
  if not isinstance(task, Downstream):
    return {}
  start = {"decoder_start_token_id": START} if task.model.kind == "encoder_decoder" else {}
  if not task.labels or isinstance(task, Ranking):
    return start | {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "problem_type": "regression"}
  return start | {
    "id2label": {str(number): label for number, label in enumerate(task.labels)},
    "label2id": {label: number for number, label in enumerate(task.labels)},
  }


def class_of(loaded: Loaded) -> str:
  """Returns the name of the class of transformers that computes what `task_of` computes."""
  return loaded.family.architecture(loaded.params["heads"], bare(loaded.model, loaded.params))


def task_of(loaded: Loaded) -> Task:
  """Returns the task that a model is for, by the heads that it has."""
  model, heads = loaded.model, loaded.params["heads"]
  if loaded.labels:
    leaves, family = heads[loaded.labels], loaded.family
    own = model.config.activation if loaded.labels == "replaced" else family.head_activation
    activation, bias = own if "dense" in leaves else "", "bias" in leaves["scores"]
    head = Classifier(leaves["scores"]["kernel"].shape[-1], activation, bias, parent=None)
    settings = Fields(loaded.settings, "config.json")
    start = settings.integer("decoder_start_token_id", family.defaults.get("decoder_start_token_id", 0))
    pooling = "pooled" if loaded.labels == "choice" and "dense" not in leaves else family.pooling
    return Encode(model, head, loaded.labels, pooling, start)
  if "masked_lm" in heads:
    return MaskedLM(model, next_sentence="next_sentence" in heads, activation=loaded.family.masked_activation)
  if model.kind == "encoder" or bare(model, loaded.params):
    return Encode(model)
  if isinstance(model, ImageDecoder):
    return ImageLM(model)
  return Seq2Seq(model) if model.kind == "encoder_decoder" else CausalLM(model)
