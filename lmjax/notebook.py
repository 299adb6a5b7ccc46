"""Saved models in a notebook, on a plain CPU, whatever mesh they were trained on.

    from lmjax import notebook
    run = notebook.load("runs/gpt2")        # or a GGUF file, a Hugging Face or bilm-tf folder, or hf:owner/name
    run.table(depth=3)
    run.logit_lens("The cat sat on the")

Loading reads metadata only; parameters are read when a method needs them.
"""

import functools
import importlib.util
import io
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import linen as nn
from matplotlib.figure import Figure

from lmjax import storage
from lmjax.curves import COLOURS, CURVES, draw_curves
from lmjax.data.batch import Batch
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.data.tokenizers.words import Words
from lmjax.decode.logits import Sampling
from lmjax.inference import table as tables
from lmjax.inference.embed import Embedder, make_embedder
from lmjax.inference.fill_mask import candidates
from lmjax.inference.generate import Generator
from lmjax.inference.table import DisplayTable
from lmjax.layers.leaves import dense
from lmjax.logs import read_metrics
from lmjax.storage import LoadedModel, SavedModel, Step
from lmjax.tasks.masked_lm import MaskedLM
from lmjax.utils import pytree
from lmjax.utils.errors import UserError, did_you_mean
from lmjax.utils.fields import LARGEST
from lmjax.utils.pytree import Tree
from lmjax.utils.trust import ALL, trusting

FILTERS = ("top_k", "top_p", "min_p", "repetition_penalty")
MANY = 1_000_000
REAL = (0, float(np.finfo(np.float32).max), float)
NUMBERS: dict[str, tuple[Any, ...]] = {
  "top_k": (0,), "top_p": (0, 1, float), "min_p": (0, 1, float), "repetition_penalty": REAL, "beams": (0, MANY),
  "length_penalty": (0, 100, float), "max_new_tokens": (0,),
}  # fmt: skip
OPTIONS = ("beams", "length_penalty", "dtype", "parse_special", "window", "truncate")


class Plot(Figure):
  """A figure that a notebook displays, whatever matplotlib's backend is."""

  def _repr_png_(self) -> bytes:
    png = io.BytesIO()
    self.savefig(png, format="png", dpi=110)
    return png.getvalue()


class ParameterTree:
  """A tree of arrays that a notebook displays."""

  def __init__(self, params: Tree):
    self.params = params

  def __repr__(self) -> str:
    leaves = pytree.named_leaves(self.params).items()
    return "\n".join(f"{name}  {leaf.dtype}[{', '.join(map(str, leaf.shape))}]" for name, leaf in leaves)

  def _repr_html_(self) -> str | None:
    if importlib.util.find_spec("treescope") is None:
      return None  # then the notebook shows the text
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # it reads numpy's deprecated names
      return importlib.import_module("treescope").render_to_html(self.params)


def load(path: epath.PathLike, step: Step = None, trust: bool = False) -> "Run":
  """Returns the saved model at a path: a run folder, a checkpoint, a GGUF file, or a Hugging Face or bilm-tf folder.

  Args:
    step: the checkpoint of a run folder: its number, or "best", by config.checkpoint.metric; default the latest.
    trust: let the folder name classes that are not lmjax's own, whose code then runs; see SECURITY.md.

  Raises:
    UserError: the path is none of these, or names what only a trusted folder may.
  """
  with trusting(*([ALL] if trust else [])):
    return Run(path, step)


class Run:
  """A saved model to inspect."""

  def __init__(self, path: epath.PathLike, step: Step = None):
    self.saved: SavedModel = storage.open(path, step if step in (None, storage.BEST) else _number("step", step, 0))
    self.path = self.saved.path

  def __repr__(self) -> str:
    count = sum(leaf.count for leaf in self.saved.leaves.values())
    return f"{self.path}: {len(self.saved.leaves)} parameters with {count:,} values"

  @functools.cached_property
  def loaded(self) -> LoadedModel:
    """The model with all of its parameters; needs a config, which a checkpoint has in its run folder."""
    return self.saved.load()

  @property
  def config(self) -> dict[str, Any]:
    """The folder's config.json, or options.json of a bilm-tf folder."""
    return self.saved.config

  @property
  def model(self) -> nn.Module:
    return self.loaded.task.model

  @property
  def params(self) -> Tree:
    return self.loaded.params

  @property
  def tokenizer(self) -> Tokenizer:
    return self.loaded.tokenizer

  def table(self, depth: int | None = None, pattern: str = "", values: bool = False) -> DisplayTable:
    """Returns the parameters as a table; with `values`, reads them for their norms and fractions of zeros."""
    depth = None if depth is None else _number("depth", depth, 1)
    return tables.table(self.saved, depth, pattern, values)

  def tree(self) -> "ParameterTree":
    """Returns the parameters as a tree to unfold, which treescope renders where it is installed; reads all of them."""
    return ParameterTree(self.params)

  def weights(self, pattern: str = "") -> dict[str, np.ndarray]:
    """Returns the parameters whose names match a regular expression; no others are read."""
    return {name: self.saved.read(name) for name in tables.matching(self.saved, pattern)}

  def histograms(self, pattern: str = "kernel|weight", bins: int = 80) -> Figure:
    """Returns histograms of the values of parameters, of at most twelve; by default those that multiply."""
    bins = _number("bins", bins, 1, 100_000)
    arrays = {name: self.saved.read(name) for name in tables.matching(self.saved, pattern)[:12]}
    figure, axes = _grid(len(arrays))
    for axis, (name, array) in zip(axes, arrays.items(), strict=False):
      axis.hist(np.asarray(array, np.float32).ravel(), bins=bins, color=COLOURS[0], log=True)
      axis.set_title(name, fontsize=7, parse_math=False)
    figure.supxlabel("value")
    figure.supylabel("count, log scale")
    return figure

  def curve(self, keys: Sequence[str] = CURVES) -> Figure:
    """Returns a plot of the metrics of a run over its steps."""
    lines = read_metrics(getattr(self.saved, "folder", self.path))
    if not lines:
      raise UserError(f"{self.path} has no metrics.jsonl: it is not a run folder")
    known = {key for line in lines for key in line}
    for key in keys:
      if key not in known and key not in CURVES:
        raise UserError(f"{self.path} has no metric {key!r}{did_you_mean(key, known)}")
    figure = Plot(figsize=(7, 4), layout="constrained")
    draw_curves(figure.subplots(), {"": lines}, keys)
    return figure

  def attention(self, text: str, layer: int = 0, head: int | None = None) -> Figure:
    """Returns the attention weights of a layer: of one head, or of all heads side by side."""
    batch, labels = self._batch(text)
    taps = self.loaded.task.forward(self.params, batch, taps=("attention",)).taps
    if "attention" not in taps:
      raise UserError(f"{type(self.model).__name__} models have no attention weights")
    layer = _check("layer", layer, len(taps["attention"]))
    weights_HxLxL = np.asarray(taps["attention"][layer, 0])
    heads = range(len(weights_HxLxL)) if head is None else (_check("head", head, len(weights_HxLxL)),)
    figure, axes = _grid(len(heads))
    for axis, h in zip(axes, heads, strict=False):
      image = axis.imshow(weights_HxLxL[h], cmap="cividis", vmin=0, vmax=1)
      axis.set_title(f"layer {layer}, head {h}", fontsize=8)
      axis.set_xticks(range(len(labels)), labels, rotation=90, fontsize=6, parse_math=False)
      axis.set_yticks(range(len(labels)), labels, fontsize=6, parse_math=False)
    figure.colorbar(image, ax=axes, label="attention weight", shrink=0.6)
    figure.supxlabel("attended to")
    figure.supylabel("token")
    return figure

  def logit_lens(self, text: str, top: int = 1) -> DisplayTable:
    """Returns the likeliest next tokens after each layer, by the model's final norm and unembedding.

    nostalgebraist (2020), "interpreting GPT: the logit lens". The last row is the prediction of the model.
    """
    top = _number("top", top, 1, self.model.config.vocabulary)
    if self.model.kind != "decoder":
      raise UserError(f"logit_lens needs a decoder; {type(self.model).__name__} does not predict the next token")
    batch, labels = self._batch(text)
    out = self.loaded.task.forward(self.params, batch, taps=("hidden",))
    model, params = self.model, self.params["model"]

    def predict(module, x):
      return module.logits(module.final_norm(x))

    rows = []
    for number, x in enumerate(out.taps["hidden"]):
      scores = model.apply({"params": params}, x[0], method=predict)
      best = np.asarray(jax.lax.top_k(scores, top)[1])
      rows.append((f"layer {number + 1}", *[" ".join(map(self._token, ids)) for ids in best]))
    return DisplayTable(f"next token by layer: {text}", ("", *labels), tuple(rows))

  def neighbors(self, word: str, top: int = 10) -> DisplayTable:
    """Returns the tokens whose embeddings have the largest cosine similarity to that of a word's first token."""
    top = _number("top", top, 1, self.model.config.vocabulary)
    ids = self.tokenizer.encode(word)
    if not ids:
      raise UserError(f"{word!r} has no tokens")
    table = np.asarray(dense(self.params["model"]["embed"]["table"]))[: self.model.config.vocabulary]
    unit = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-9)
    cosine = unit @ unit[ids[0]]
    order = np.argsort(-cosine)[: top + 1]
    rows = tuple((self._token(int(i)), f"{cosine[i]:.3f}") for i in order if i != ids[0])[:top]
    return DisplayTable(f"nearest to {self._token(int(ids[0]))}", ("token", "cosine"), rows)

  def diff(self, other: "Run | epath.PathLike") -> DisplayTable:
    """Returns the relative difference |a - b| / |a| of every parameter from that of another model, or of its path."""
    other = other if isinstance(other, Run) else load(other)
    rows = []
    for name, leaf in self.saved.leaves.items():
      second = other.saved.leaves.get(name)
      if second is None or second.shape != leaf.shape:
        rows.append((name, "only in the first" if second is None else f"shapes {leaf.shape} and {second.shape}"))
        continue
      a, b = self.saved.read(name).astype(np.float32), other.saved.read(name).astype(np.float32)
      rows.append((name, f"{np.linalg.norm(a - b) / max(np.linalg.norm(a), 1e-12):.4g}"))
    rows += [(name, "only in the second") for name in other.saved.leaves if name not in self.saved.leaves]
    return DisplayTable(f"{self.path} and {other.path}", ("name", "relative difference"), tuple(rows))

  def generate(
    self, prompt: str, new: int = 50, temperature: float = 1.0, seed: int = 0, num_samples: int = 1, **options: Any
  ) -> Any:
    """Returns a continuation of a prompt, or the output of an encoder-decoder for it; a list of several samples.

    options: those of `lmjax generate`: top_k, top_p, min_p, repetition_penalty, beams, length_penalty, stop (a string
    or several), dtype, parse_special, window; max_new_tokens is `new`.

    Raises:
      UserError: an unknown option, or a value that it cannot have.
    """
    options = {name: _number(name, v, *NUMBERS[name]) if name in NUMBERS else v for name, v in options.items()}
    temperature, num_samples = _number("temperature", temperature, *REAL), _number("num_samples", num_samples, 1, MANY)
    filters = {name: options.pop(name) for name in FILTERS if name in options}
    new, stop = options.pop("max_new_tokens", new), options.pop("stop", ())
    for name in options:
      if name not in OPTIONS:
        raise UserError(f"generate: no option {name!r}{did_you_mean(name, (*FILTERS, *OPTIONS, 'stop'))}")
    if options.get("beams") and (filters or stop or temperature != 1 or num_samples > options["beams"]):
      raise UserError("generate: with beams, sampling and stop have no effect, and there are as many samples at most")
    stop = (stop,) if isinstance(stop, str) else stop
    if not isinstance(prompt, str) or not isinstance(stop, list | tuple) or not all(isinstance(s, str) for s in stop):
      raise UserError("generate: the prompt is a string, and stop a string or several")
    new, seed = _number("new", new, 0), _number("seed", seed, 0)
    loaded = self.saved.load(options["dtype"]) if options.get("dtype") else self.loaded
    options["stops"] = tuple(stop)
    try:
      generator = Generator(loaded, Sampling(temperature, **filters), new, seed=seed, **options)
      texts = generator.texts([(prompt, sample) for sample in range(num_samples)])
    except ValueError as error:
      raise UserError(f"generate: {error}") from error
    return texts[0] if num_samples == 1 else texts

  def embed(self, texts: Sequence[str], pooling: str | None = None, layer: int = 0) -> np.ndarray:
    """Returns a vector for each text, [texts, D]; pooled as the folder says, as `lmjax embed` does."""
    if isinstance(texts, str) or not len(texts):
      raise UserError("embed: give a list of at least one text")
    layer, folder = _number("layer", layer, 0), getattr(self.saved, "folder", self.path)
    embedder = make_embedder(self.loaded, folder, pooling, layer, normalize=False, batch=32)
    return embedder.sequences(self.params, [embedder.encode_text(text) for text in texts])

  def fill(self, text: str, top: int = 5) -> DisplayTable:
    """Returns the likeliest tokens for each [MASK] and their probabilities."""
    if not isinstance(self.loaded.task, MaskedLM):
      raise UserError(f"{self.path} has no masked-LM head")
    top = _number("top", top, 1, self.model.config.vocabulary)
    predictions, filled = candidates(self.loaded.task, self.tokenizer, self.params, text, self.loaded.length, top)
    columns = tuple(name for i in range(len(predictions)) for name in (f"[MASK] {i + 1}", "p"))
    rows = tuple(
      tuple(cell for token, p in row for cell in (token, f"{p:.3f}")) for row in zip(*predictions, strict=True)
    )
    return DisplayTable(filled, columns, rows)

  def _batch(self, text: str) -> tuple[Batch, list[str]]:
    """Returns the batch of one row that text makes, and the strings of its tokens."""
    embedder = Embedder(self.loaded.task, self.tokenizer, self.loaded.length, batch=1)
    encoded = embedder.encode_text(text)
    labels = [token if isinstance(token, str) else self._token(int(token)) for token in encoded.tokens]
    return embedder.rows([encoded], len(encoded.tokens)), labels

  def _token(self, number: int) -> str:
    if isinstance(self.tokenizer, Words):
      return self.tokenizer.vocabulary[number]
    if hasattr(self.tokenizer, "token"):
      return self.tokenizer.token(number)
    ends = {self.tokenizer.start: "<start>", self.tokenizer.end: "<end>"}
    return ends.get(number) or repr(self.tokenizer.decode([number]))[1:-1]


def _number(what: str, value: Any, least: float, most: float = LARGEST, kind: type = int) -> Any:
  """Returns a number that must be in a range, as an int or a float."""
  numbers = (int, np.integer) if kind is int else (int, float, np.integer, np.floating)
  if isinstance(value, bool) or not isinstance(value, numbers) or not least <= value <= most:
    name = "a whole number" if kind is int else "a number"
    raise UserError(f"{what} must be {name} from {least:,} to {most:,}, not {value!r}")
  return kind(value)


def _check(what: str, index: Any, count: int) -> int:
  """Returns an index, which must be one of `count`: an array on a device would take the nearest instead."""
  if isinstance(index, bool) or not isinstance(index, int | np.integer) or not 0 <= index < count:
    raise UserError(f"{what} {index!r} does not exist; there are {count}, the first is 0")
  return int(index)


def _grid(count: int):
  """Returns a figure and `count` axes."""
  columns = min(count, 4)
  rows = -(-count // columns)
  figure = Plot(figsize=(3 * columns + 1, 2.6 * rows + 1), layout="constrained")
  axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
  for axis in axes[count:]:
    axis.set_visible(False)
  return figure, axes
