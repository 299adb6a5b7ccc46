"""What a model will see, for people: rows in colour, lengths as a plot."""

import itertools
from collections.abc import Sequence

import numpy as np
from etils import epath
from rich.table import Table
from rich.text import Text

from lmjax.data.batch import Batch
from lmjax.data.tokenizers import Tokenizer

COLOURS = ("cyan", "yellow", "magenta", "green", "blue", "red")  # of segments, in turn
BARS = 12


def passage(batch: Batch, row: int, tokenizer: Tokenizer) -> Text:
  """Returns a row as text: a colour for each packed document, dim where the loss does not count.

  Its targets, or where the loss is at a few predicted places, its inputs.
  """
  text = Text()
  segments = batch.get("segments", np.ones_like(batch["inputs"]))[row]
  ids_BxL = batch.get("targets", batch["inputs"])
  weights = batch["weights"][row] if batch["weights"].shape == ids_BxL.shape else np.ones(ids_BxL.shape[1])
  kinds = zip(segments.tolist(), weights.tolist(), strict=True)
  for (segment, weight), run in itertools.groupby(enumerate(kinds), key=lambda item: item[1]):
    ids = [int(ids_BxL[row, i]) for i, _ in run]  # decoded together: a character may need several
    if segment:
      style = COLOURS[int(segment - 1) % len(COLOURS)]
      text.append(tokenizer.decode(ids), style if weight else f"dim {style}")
      text.append("|" if ids[-1] == tokenizer.end else "", "dim")
  if padding := int((segments == 0).sum()):
    text.append(f" [{padding} of padding]", "dim")
  return text


def table(batch: Batch, row: int, tokenizer: Tokenizer, tokens: int) -> Table:
  """Returns the first tokens of a row, every key of the batch a column, ids with their pieces."""
  found = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
  keys = [key for key in batch if batch[key].shape == batch["inputs"].shape]
  found.add_column("token", justify="right")
  for key in keys:
    found.add_column(key, justify="right")
    if key in ("inputs", "targets"):
      found.add_column("")
  for i in range(min(tokens, batch["inputs"].shape[1])):
    cells = [str(i)]
    for key in keys:
      value = batch[key][row, i]
      cells.append(f"{value:g}")
      if key in ("inputs", "targets"):
        cells.append(repr(piece(int(value), tokenizer))[1:-1])
    segment = int(batch["segments"][row, i]) if "segments" in batch else 1
    found.add_row(*map(Text, cells), style=COLOURS[(segment - 1) % len(COLOURS)] if segment else "dim")
  return found


def piece(number: int, tokenizer: Tokenizer) -> str:
  """Returns what an id stands for; the ends of documents have names."""
  if number in (tokenizer.start, tokenizer.end):
    return "<end>" if number == tokenizer.end else "<start>"
  return tokenizer.decode([number])


def bars(lengths: Sequence[int]) -> Table:
  """Returns a histogram of document lengths for a terminal."""
  counts, edges = _histogram(lengths)
  found = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
  found.add_column("tokens", justify="right")
  found.add_column("documents", justify="right")
  found.add_column("")
  for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
    found.add_row(f"{int(low):,}-{int(high) - 1:,}", f"{count:,}", "█" * round(40 * count / counts.max()))
  return found


def plot_lengths(lengths: Sequence[int], file: epath.PathLike) -> None:
  """Draws the histogram of document lengths into an image file."""
  from matplotlib.figure import Figure

  counts, edges = _histogram(lengths)
  figure = Figure(figsize=(7, 4), layout="constrained")
  axes = figure.subplots()
  axes.bar(edges[:-1], counts, np.diff(edges), align="edge", edgecolor="white")
  axes.set(xscale="log", xlabel="length of a document (tokens)", ylabel="documents")
  axes.axvline(np.median(lengths), color="black", linestyle="--", label=f"median {np.median(lengths):,.0f}")
  axes.legend()
  with epath.Path(file).open("wb") as opened:
    figure.savefig(opened, format="png", dpi=120)


def _histogram(lengths: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
  """Returns counts and whole-numbered edges that grow by a constant factor."""
  edges = np.geomspace(max(min(lengths), 1), max(lengths) + 1, BARS + 1)
  edges = np.unique(np.concatenate([np.floor(edges[:-1]), [max(lengths) + 1]]))
  return np.histogram(np.maximum(lengths, 1), edges)[0], edges
