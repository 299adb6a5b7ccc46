"""Checkpoints in a notebook, on a plain CPU, whatever mesh wrote them.

    from lmjax import notebook
    run = notebook.load("runs/gpt2")        # or a folder in Hugging Face's format
    run.table(depth=3)
    run.logit_lens("The cat sat on the")

Opening reads metadata only; weights are read when something needs them.
"""

import functools
import io
import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from matplotlib.figure import Figure

from lmjax.data.batch import Batch
from lmjax.data.tokenizers.words import Words
from lmjax.decode.logits import Sampling
from lmjax.decode.sample import Sampler
from lmjax.inference import table as tables
from lmjax.inference.embed import Embedder
from lmjax.inference.fill_mask import candidates
from lmjax.inference.table import Table
from lmjax.layers.einsum import vocabulary_logits
from lmjax.storage.loading import LoadedModel, load_model
from lmjax.storage.saved import Saved, open_checkpoint, run_of
from lmjax.tasks.masked_lm import MaskedLM
from lmjax.utils.errors import UserError

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # told apart by everyone (Okabe and Ito)


class Plot(Figure):
  """A figure that a notebook shows by itself, whatever backend matplotlib has there."""

  def _repr_png_(self) -> bytes:
    drawn = io.BytesIO()
    self.savefig(drawn, format="png", dpi=110)
    return drawn.getvalue()


def load(path: epath.PathLike, step: int | None = None) -> "Run":
  """Returns what is at a path: a run folder, a folder in Hugging Face's format, or a checkpoint by itself.

  Raises:
    UserError: none of them is there.
  """
  return Run(path, step)


class Run:
  """A checkpoint to look at."""

  def __init__(self, path: epath.PathLike, step: int | None = None):
    self.path = epath.Path(path)
    self.saved: Saved = open_checkpoint(path, step)

  def __repr__(self) -> str:
    count = sum(leaf.count for leaf in self.saved.leaves.values())
    return f"{self.path}: {count:,} values in {len(self.saved.leaves)} parameters"

  @functools.cached_property
  def opened(self) -> LoadedModel:
    """The model with all of its weights; a checkpoint by itself is opened as one of the run it lies in."""
    folder = run_of(self.path)
    if not any((folder / name).exists() for name in ("config.json", "options.json")):
      raise UserError(f"{self.path} is a checkpoint without a config: its table and weights are all there is to see")
    return load_model(folder, self.saved.step)

  @property
  def config(self) -> dict[str, Any]:
    """What the folder's config.json says, or its options.json, if ELMo's."""
    folder = run_of(self.path)
    name = "config.json" if (folder / "config.json").exists() else "options.json"
    return json.loads((folder / name).read_text())

  @property
  def model(self):
    return self.opened.task.model

  @property
  def params(self):
    return self.opened.params

  @property
  def tokenizer(self):
    return self.opened.tokenizer

  def table(self, depth: int | None = None, pattern: str = "", values: bool = False) -> Table:
    """Returns the parameters as a table; with `values` their norms and shares of zeros, which reads them."""
    return tables.table(self.saved, depth, pattern, values)

  def weights(self, pattern: str = "") -> dict[str, np.ndarray]:
    """Returns the parameters whose names a regular expression is found in, read now, and only they."""
    return {name: self.saved.read(name) for name in tables.matching(self.saved, pattern)}

  def histograms(self, pattern: str = "kernel", bins: int = 80) -> Figure:
    """Returns how the values of some parameters are spread, at most twelve of them."""
    found = {name: self.saved.read(name) for name in tables.matching(self.saved, pattern)[:12]}
    figure, axes = _grid(len(found))
    for axis, (name, array) in zip(axes, found.items(), strict=False):
      axis.hist(np.asarray(array, np.float32).ravel(), bins=bins, color=COLOURS[0], log=True)
      axis.set_title(name, fontsize=7)
    figure.supxlabel("value")
    figure.supylabel("count, log scale")
    return figure

  def curve(self, keys: Sequence[str] = ("train_loss", "validation_loss")) -> Figure:
    """Returns the metrics of a run over its steps."""
    file = run_of(self.path) / "metrics.jsonl"
    if not file.exists():
      raise UserError(f"{self.path} has no metrics.jsonl: it is no run folder")
    lines = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
    figure = Plot(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for key, colour in zip(keys, COLOURS, strict=False):
      points = [(line["step"], line[key]) for line in lines if key in line]
      if points:
        few = len(points) < 40
        axis.plot(*zip(*points, strict=True), label=key, color=colour, marker="o" if few else None, markersize=4)
    axis.set(xlabel="step", ylabel="nats")
    axis.legend(frameon=False)
    return figure

  def attention(self, text: str, layer: int = 0, head: int | None = None) -> Figure:
    """Returns the attention weights of a layer over a text: of one head, or of all side by side."""
    batch, labels = self._batch(text)
    taps = self.opened.task.forward(self.params, batch, taps=("attention",)).taps
    if "attention" not in taps:
      raise UserError(f"a {type(self.model).__name__} has no attention to show")
    weights_HxLxL = np.asarray(taps["attention"][layer, 0])
    heads = range(len(weights_HxLxL)) if head is None else (head,)
    figure, axes = _grid(len(heads))
    for axis, h in zip(axes, heads, strict=False):
      drawn = axis.imshow(weights_HxLxL[h], cmap="cividis", vmin=0, vmax=1)
      axis.set_title(f"layer {layer}, head {h}", fontsize=8)
      axis.set_xticks(range(len(labels)), labels, rotation=90, fontsize=6)
      axis.set_yticks(range(len(labels)), labels, fontsize=6)
    figure.colorbar(drawn, ax=axes, label="attention weight", shrink=0.6)
    figure.supxlabel("attended to")
    figure.supylabel("token")
    return figure

  def logit_lens(self, text: str, top: int = 1) -> Table:
    """Returns what each layer's vectors would say is next, read by the model's own last norm and table.

    nostalgebraist (2020), "interpreting GPT: the logit lens"; the last row is the model's own answer.
    """
    if not hasattr(self.model, "causal") or not self.model.causal:
      raise UserError("logit_lens reads decoders: models that predict the next token")
    batch, labels = self._batch(text)
    out = self.opened.task.forward(self.params, batch, taps=("hidden",))
    model, params = self.model, self.params["model"]
    table, vocabulary = model.unembedding(params), model.config.vocabulary

    def leave(module, x):
      return module.final_norm(x) if hasattr(module, "final_norm") else x

    rows = []
    for number, x in enumerate(out.taps["hidden"]):
      scores = vocabulary_logits(model.apply({"params": params}, x[0], method=leave), table, vocabulary)
      best = np.asarray(jax.lax.top_k(scores, top)[1])
      rows.append((f"layer {number + 1}", *[" ".join(map(self._piece, ids)) for ids in best]))
    return Table(f"what follows, by layer: {text}", ("", *labels), tuple(rows))

  def neighbors(self, word: str, top: int = 10) -> Table:
    """Returns the tokens whose embeddings point most nearly the way of a word's first token (cosine)."""
    ids = self.tokenizer.encode(word)
    if not ids:
      raise UserError(f"{word!r} has no tokens")
    table = np.asarray(self.params["model"]["embed"]["table"])[: self.model.config.vocabulary]
    unit = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-9)
    near = unit @ unit[ids[0]]
    order = np.argsort(-near)[: top + 1]
    rows = tuple((self._piece(int(i)), f"{near[i]:.3f}") for i in order if i != ids[0])[:top]
    return Table(f"nearest to {self._piece(int(ids[0]))}", ("token", "cosine"), rows)

  def diff(self, other: "Run") -> Table:
    """Returns for every parameter how far it is from another checkpoint's: |a - b| / |a|."""
    rows = []
    for name, leaf in self.saved.leaves.items():
      there = other.saved.leaves.get(name)
      if there is None or there.shape != leaf.shape:
        rows.append((name, "not there" if there is None else f"{there.shape} there"))
        continue
      a, b = self.saved.read(name).astype(np.float32), other.saved.read(name).astype(np.float32)
      rows.append((name, f"{np.linalg.norm(a - b) / max(np.linalg.norm(a), 1e-12):.4g}"))
    rows += [(name, "not here") for name in other.saved.leaves if name not in self.saved.leaves]
    return Table(f"{self.path} and {other.path}", ("name", "relative difference"), tuple(rows))

  def generate(self, prompt: str, new: int = 50, temperature: float = 1.0, seed: int = 0, **filters) -> str:
    """Returns a continuation of a prompt, or of an encoder-decoder what it writes of it; filters as in Sampling."""
    opened, tokenizer = self.opened, self.tokenizer
    if not hasattr(self.model, "extend"):
      raise UserError(f"a {type(self.model).__name__} writes no text")
    reads = hasattr(self.model, "read")
    prompts = [[tokenizer.start, *([] if reads else tokenizer.encode(prompt))]]
    sources = [[*tokenizer.encode(prompt), tokenizer.end]] if reads else None
    max_tokens = new + 1 if reads else opened.length
    sampler = Sampler(self.model, max_tokens, Sampling(temperature, **filters), tokenizer.end)
    params = sampler.prepare(self.params["model"])
    drawn = np.concatenate(list(sampler.tokens(params, prompts, new, [seed], 16, sources)), axis=1)[0]
    return tokenizer.decode([int(i) for i in drawn if i >= 0 and i != tokenizer.end])

  def embed(self, texts: Sequence[str], pooling: str = "mean", layer: int = 0) -> np.ndarray:
    """Returns a vector for each text [texts, D]."""
    embedder = Embedder(self.opened.task, self.tokenizer, self.opened.length, pooling, layer)
    return embedder.sequences(self.params, [embedder.read(text) for text in texts])

  def fill(self, text: str, top: int = 5) -> Table:
    """Returns the likeliest pieces behind each [MASK] and their attention_weights."""
    if not isinstance(self.opened.task, MaskedLM):
      raise UserError(f"{self.path} has no masked-LM head")
    found, filled = candidates(self.opened.task, self.tokenizer, self.params, text, self.opened.length, top)
    columns = tuple(name for i in range(len(found)) for name in (f"[MASK] {i + 1}", "p"))
    rows = tuple(tuple(cell for place in found for cell in (place[r][0], f"{place[r][1]:.3f}")) for r in range(top))
    return Table(filled, columns, rows)

  def _batch(self, text: str) -> tuple[Batch, list[str]]:
    """Returns a text as a batch of one row, and its tokens in words."""
    embedder = Embedder(self.opened.task, self.tokenizer, self.opened.length, batch=1)
    read = embedder.read(text)
    labels = list(read.tokens) if isinstance(read.tokens[0], str) else [self._piece(int(i)) for i in read.tokens]
    return embedder.rows([read], len(read.tokens)), labels

  def _piece(self, number: int) -> str:
    if isinstance(self.tokenizer, Words):
      return self.tokenizer.vocabulary[number]
    if hasattr(self.tokenizer, "token"):
      return self.tokenizer.token(number)
    ends = {self.tokenizer.start: "<start>", self.tokenizer.end: "<end>"}
    return ends.get(number) or repr(self.tokenizer.decode([number]))[1:-1]


def _grid(count: int):
  """Returns a figure and so many axes."""
  columns = min(count, 4)
  rows = -(-count // columns)
  figure = Plot(figsize=(3 * columns + 1, 2.6 * rows + 1), layout="constrained")
  axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
  for axis in axes[count:]:
    axis.set_visible(False)
  return figure, axes
