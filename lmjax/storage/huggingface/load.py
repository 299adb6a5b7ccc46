"""Reads a Hugging Face folder: config.json, tensors and tokenizer files."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import linen as nn
from flax import traverse_util

from lmjax.data.tokenizers import registry
from lmjax.data.tokenizers.base import Tokenizer, ends_of
from lmjax.data.tokenizers.pretrained import read_template
from lmjax.data.tokenizers.settings import Settings
from lmjax.layers.einsum import padded
from lmjax.models import bart, decoder, encoder, encoder_decoder, llava
from lmjax.storage import safetensors
from lmjax.storage.huggingface.closest import closest, common_keys
from lmjax.storage.huggingface.families import FAMILIES, Family, note
from lmjax.storage.huggingface.families.base import SCORING
from lmjax.storage.huggingface.families.llava import vision_sizes
from lmjax.storage.huggingface.flax_files import FlaxTensors, is_flax
from lmjax.storage.huggingface.names import Renamed, families_of, rename, resolve_bias, resolve_copies
from lmjax.storage.huggingface.weights import FINAL_BIAS, WeightMap, arrange, separate, unembedding, unembedding_bias
from lmjax.storage.lazy import LazyTensor
from lmjax.storage.safetensors import Tensors
from lmjax.utils.errors import UserError
from lmjax.utils.fields import Fields
from lmjax.utils.files import expand, find, read_json
from lmjax.utils.pytree import Tree
from lmjax.utils.trust import check_links

TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model", "kind.json",
              "characters.json", "bytes.json")  # fmt: skip
# Classification heads: of a sequence, of each token, of a span's two ends, of one of several choices, of tokens that
# were replaced.
LABELS = ("sequence", "tokens", "span", "choice", "replaced")
HEADS = (*LABELS, "masked_lm", "next_sentence", "unembed")
ENCODER_HEADS = "ForTokenClassification"  # of an encoder-decoder family, on the encoder alone
FLOATS = [np.dtype(safetensors.DTYPES[name]) for name in ("F64", "F32", "F16", "BF16")]


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A model from a folder.

  params: {"model": ..., "heads": {...}} of LazyTensor; values are read when they are indexed. settings: config.json.
  """

  model: nn.Module
  params: Tree
  tokenizer: Tokenizer | None
  settings: dict[str, Any]
  family: Family

  @property
  def labels(self) -> str:
    """The classification head, one of `LABELS`; empty if there is none."""
    return next((head for head in LABELS if head in self.params["heads"]), "")

  def arrays(self) -> Tree:
    """Returns the parameters as numpy arrays in memory."""
    return jax.tree.map(np.asarray, self.params)


def open_tensors(folder: epath.PathLike) -> Tensors | FlaxTensors:
  """Returns the tensors of a folder by name: safetensors mapped, the old Flax format read into memory."""
  folder = epath.Path(folder)
  return FlaxTensors(folder) if is_flax(folder) else Tensors(folder)


def read_config(folder: epath.PathLike) -> tuple[dict[str, Any], Family, Any]:
  """Returns a folder's config.json, its family and the lmjax config of the model.

  Where `model_type` is missing, it follows from `architectures`, else from the names of the tensors.

  Raises:
    UserError: config.json is missing, or names an architecture that lmjax does not have.
  """
  file = expand(folder) / "config.json"
  fields = Fields(read_json(file), file)
  kind = fields.text("model_type", "") or _infer_kind(fields, folder)
  if kind not in FAMILIES:
    raise UserError(f"{file}: the architecture {kind!r} is not supported{closest(fields)}")
  family = FAMILIES[kind]
  config = family.from_hf(fields)
  return fields.values | {"model_type": kind}, family, config


def _infer_kind(fields: Fields, folder: epath.PathLike) -> str:
  """Returns the `model_type` of a config.json that has none, and prints it."""
  for name in fields.sequence("architectures", str, []):
    for kind, family in FAMILIES.items():
      if family.is_class(name):
        note(f"{fields.where}: model_type is missing; taken to be {kind}, by architectures")
        return kind
    raise UserError(f"{fields.where}: the architecture {name!r} is not supported{closest(fields)}")
  kinds = families_of(open_tensors(folder), FAMILIES, lambda family: family.from_hf(Fields({}, fields.where)))
  if not kinds:
    raise UserError(
      f"{fields.where}: model_type is missing, and the tensors are those of no architecture that is known"
    )
  kind = max(kinds, key=lambda kind: common_keys(FAMILIES[kind], fields))
  note(f"{fields.where}: model_type is missing; taken to be {kind}, by the names of the tensors")
  return kind


def load(folder: epath.PathLike) -> Loaded:
  """Returns the model of a folder, with the shape of every tensor checked and no value read.

  Raises:
    UserError: a file is missing, corrupt or pickled; a tensor is missing, unknown or of another shape.
  """
  folder = find(folder)
  check_links(folder)
  settings, family, config = read_config(folder)
  tokenizer: Any = load_tokenizer(folder, config.vocabulary)
  if tokenizer:
    add_generation_settings(tokenizer, Settings(folder), config)
  return assemble(folder, settings, family, config, open_tensors(folder), tokenizer)


def add_generation_settings(tokenizer: Any, settings: Settings, config: Any) -> None:
  """Sets what the files of a folder say about generation on its tokenizer, where generation reads it."""
  with contextlib.suppress(AttributeError):  # read-only in kinds of lmjax itself
    tokenizer.excluded, tokenizer.unsupported = settings.excluded(config.vocabulary, ends_of(tokenizer))
    tokenizer.forced_end = settings.forced_end()
    if isinstance(config, encoder_decoder.Config):  # T5 starts decoding from its padding token
      tokenizer.start = settings.decoder_start(config.vocabulary)
      tokenizer.forced_start = settings.forced_start(config.vocabulary)


def assemble(
  folder: epath.Path, settings: dict[str, Any], family: Family, config: Any, stored: Any, tokenizer: Any = None
) -> Loaded:
  """Returns the model of a config and tensors; see `load`.

  Args:
    folder: names the model in messages.
    stored: the tensors by the names of Hugging Face's models; see `storage.safetensors.Tensors`.
    tokenizer: a Tokenizer, or None.

  Raises:
    UserError: as `load`.
  """
  tensors = rename(stored, family, family.weights(config), folder)
  resolve_copies(tensors, family, folder)
  resolve_bias(tensors, family, config, folder)
  config = _fit(config, settings, family, tensors, folder)
  heads = _find_heads(family, config, _classes(settings, folder), tensors)
  config = _fit_scoring(config, settings, family, tensors, heads, folder)
  weights = family.weights(config)
  scoring = () if config.tie_embeddings or family.unembed not in tensors else unembedding(family.unembed)
  bias = unembedding_bias(family.unembed, config) if getattr(config, "unembed_bias", False) else ()
  scores = bool(scoring or config.tie_embeddings) and not set(LABELS) & set(heads)
  scoring += tuple(weight for weight in bias if scores or weight.hf in tensors)
  reader = _Reader(folder, tensors, config, family.prefix_under(heads))
  params: dict[str, Any] = {}
  for part, table in (("model", (*weights, *scoring)), *(("heads", table) for table in heads.values())):
    for weight in table:
      params |= {f"{part}/{path}": tensor for path, tensor in reader.take(weight)}
  ignored = tuple(f".{name}" for name in family.ignore_suffixes)
  unused = [tensors.names[n] for n in tensors if n not in reader.taken and not f".{n}".endswith(ignored)]
  if unused:
    names = ", ".join(sorted(unused)[:8]) + (f" and {len(unused) - 8} more" if len(unused) > 8 else "")
    raise UserError(f"{folder}: the model does not use the tensors {names}")
  tree = {"heads": {}} | traverse_util.unflatten_dict(params, sep="/")
  return Loaded(family.module(config), tree, tokenizer, settings, family)


def _classes(settings: dict[str, Any], folder: epath.Path) -> list[str]:
  return Fields(settings, folder / "config.json").sequence("architectures", str, [])


def _fit(config: Any, settings: dict[str, Any], family: Family, tensors: Renamed, folder: epath.Path) -> Any:
  """Returns the config with the parts that the tensors say there are: a pooler, a decoder."""
  if isinstance(config, encoder.Config):
    kernel = next((w.hf for w in family.weights(config) if w.lmjax == "pooler/kernel"), None)
    config = dataclasses.replace(config, pooler=kernel in tensors)
  if isinstance(config, encoder_decoder.Config) and not any(name.startswith("decoder.") for name in tensors):
    with_decoder = [name for name in _classes(settings, folder) if not name.endswith(("EncoderModel", ENCODER_HEADS))]
    if not with_decoder:
      config = dataclasses.replace(config, decoder_depth=0)
  if isinstance(config, bart.Config):
    config = dataclasses.replace(config, unembed_bias=FINAL_BIAS.hf in tensors)
  return config


def _fit_scoring(
  config: Any, settings: dict[str, Any], family: Family, tensors: Renamed, heads: Iterable[str], folder: epath.Path
) -> Any:
  """Returns the config with what scores tokens as the file has it; copies of the embedding are dropped.

  As in transformers, a table of its own is used even where config.json says that there is one for both.

  Raises:
    UserError: config.json says that there are two tables, the architecture needs both, and the file has one.
  """
  embed = next(weight.hf for weight in family.weights(config) if weight.lmjax == "embed/table")
  is_t5 = isinstance(config, encoder_decoder.Config)
  if family.unembed in tensors and embed not in tensors and config.tie_embeddings:
    tensors.rename(family.unembed, embed)
  tied = config.tie_embeddings
  if tied and family.unembed in tensors and tensors.same(family.unembed, embed):
    tensors.drop(family.unembed)
  elif tied and family.unembed in tensors:
    if False not in (settings.get("tie_word_embeddings"), settings.get("scale_decoder_outputs")):
      names = " and ".join(tensors.names[name] for name in (family.unembed, embed))
      note(f"{folder}: {names} differ although tie_word_embeddings is true; each is used for its own purpose")
    tied = False
  needs = "masked_lm" in heads or any(name.endswith(SCORING) for name in _classes(settings, folder))
  if not tied and family.unembed not in tensors and needs:
    raise UserError(f"{folder}: the tensor {family.unembed} is missing, and tie_word_embeddings is false")
  config = dataclasses.replace(config, tie_embeddings=tied)
  if isinstance(config, decoder.Config) and not needs and not tied and family.unembed not in tensors:
    config = dataclasses.replace(config, logits_scaling=1.0)  # final vectors are taken as they are
  if is_t5 and set(LABELS) & set(heads):  # a classifier takes the final vectors as they are
    config = dataclasses.replace(config, scale_output=False)
  return config


def axis_sizes(config: Any) -> dict[str, int]:
  """Returns the size of every axis letter that the layouts of a model use."""
  offset = getattr(config, "offset", 0) or getattr(config, "position_offset", 0)
  positions = getattr(config, "length", 0) + offset
  sizes = dict(V=config.vocabulary, D=config.width, E=config.width, F=config.mlp, P=positions)
  sizes["R"] = getattr(config, "embedding", None) or config.width
  sizes |= dict(H=config.heads, G=getattr(config, "kv_heads", config.heads), K=config.head_size)
  sizes |= dict(Q=getattr(config, "num_buckets", 0), X=getattr(config, "experts", 0))
  if isinstance(config, encoder.Config):
    sizes["T"] = config.token_types
  if isinstance(config, llava.Config):
    sizes |= vision_sizes(config)
  return sizes


def depth_of(config: Any, weight: WeightMap) -> int:
  """Returns the number of layers of a stacked parameter."""
  if getattr(config, "shared_layers", False):
    return 1
  if weight.lmjax.startswith("vision/"):
    return int(config.vision_depth)
  depth = getattr(config, "decoder_depth", None) if weight.lmjax.startswith("decoder/") else None
  return config.depth if depth is None else depth


def _find_heads(family: Family, config: Any, classes: list[str], tensors: Renamed) -> dict[str, tuple[WeightMap, ...]]:
  """Returns the weights of each head whose tensors are all in the folder.

  Where two heads would read the same tensors, the larger one is taken, or the one of the class that config.json names.
  """
  complete = {head: table for head, table in family.heads(config).items() if all(w.hf in tensors for w in table)}
  architecture = next(iter(classes), "")
  taken: set[str] = set()
  heads = {}
  for head in sorted(complete, key=lambda head: (-len(complete[head]), family.architecture([head]) != architecture)):
    names = {weight.hf for weight in complete[head]}
    if not names & taken:
      heads[head] = complete[head]
      taken |= names
  return heads


@dataclasses.dataclass
class _Reader:
  """Turns the tensors of a folder into parameters, and records which it has used.

  prefix: of the model's tensors, for the name of one that is missing from a folder without any.
  """

  folder: epath.Path
  tensors: Renamed
  config: Any
  prefix: str
  taken: set[str] = dataclasses.field(default_factory=set)

  def __post_init__(self):
    self.sizes = axis_sizes(self.config)

  def take(self, weight: WeightMap) -> Iterator[tuple[str, LazyTensor]]:
    """Yields the path and the parameter of each path of a weight, after checking the shape in every layer."""
    layers = depth_of(self.config, weight) if weight.stacked else None
    for layer in range(layers or 1):
      self.taken.update(weight.hf.format(layer, expert) for expert in self._experts(weight))
      self._arrange(weight, layer)
    rows = padded(self.sizes["V"]) if weight.of_vocabulary else None
    for i, path in enumerate(weight.paths):
      number = i if len(weight.paths) > 1 else None
      yield path, LazyTensor(functools.partial(self._arrange, weight, number=number), layers, rows)

  def _experts(self, weight: WeightMap) -> range:
    return range(self.config.experts if weight.of_experts else 1)

  def _arrange(self, weight: WeightMap, layer: int | None, number: int | None = None) -> np.ndarray:
    """Returns a tensor in lmjax's arrangement, or one of the parameters in it; a view of the mapped file.

    The tensors of a layer's experts are read and stacked.
    """
    if not weight.of_experts:
      return self._arrange_one(weight, weight.hf.format(layer), number)
    names = [weight.hf.format(layer, expert) for expert in self._experts(weight)]
    return np.stack([self._arrange_one(weight, name, number) for name in names])

  def _arrange_one(self, weight: WeightMap, name: str, number: int | None) -> np.ndarray:
    if name not in self.tensors:
      start = "" if weight.lmjax.startswith(HEADS) else self.tensors.prefix or self.prefix
      raise UserError(f"{self.folder}: the tensor {start}{name} is missing")
    sizes, stored = self.sizes, self.tensors.names[name]
    if self.tensors.dtype(name) not in FLOATS:
      raise UserError(
        f"{self.folder}: {stored} is stored as {self.tensors.dtype(name)}: quantized weights are not supported; save "
        "the model with weights of 16 or 32 bits"
      )
    if weight.layout.startswith("Y"):  # classes: as many as the file has
      sizes = sizes | {"Y": (self.tensors.shape(name) or (0,))[0]}
    try:
      stored_array = self.tensors[name]
      if len(weight.paths) > 1:
        return separate(stored_array, weight.layout, sizes, number or 0)
      return arrange(stored_array, weight.layout, sizes)
    except ValueError as error:
      raise UserError(f"{self.folder}: {stored} {error}") from error


def load_tokenizer(folder: epath.Path, rows: int) -> Tokenizer | None:
  """Returns a folder's tokenizer with what surrounds a string; None where there is none.

  Raises:
    UserError: it has ids beyond the rows of the embedding.
  """
  byt5 = Settings(folder).kind == "ByT5Tokenizer"  # which has no file of a vocabulary
  if not byt5 and not any(any(folder.glob(name)) for name in TOKENIZERS):
    return None
  tokenizer: Any = registry.load(folder)
  if tokenizer.size > rows:
    raise UserError(
      f"{folder}: the tokenizer has {tokenizer.size:,} ids, but the model's vocabulary has {rows:,}; "
      "resize the embedding, or use the tokenizer that belongs to the model"
    )
  if template := read_template(folder, tokenizer):
    tokenizer.template = template
  return tokenizer
