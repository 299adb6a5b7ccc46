"""What a model will see, for people: rows in colour, lengths as a plot."""

import itertools
from collections.abc import Sequence

import numpy as np
from etils import epath
from rich.table import Table
from rich.text import Text

from lmjax.data.batch import Batch
from lmjax.data.tokenizers.base import Tokenizer

COLOURS = ("cyan", "yellow", "magenta", "green", "blue", "red")  # of segments, in turn
BARS = 12


SENTINEL = r"<extra_id_\d+>"


def render_row(batch: Batch, row: int, tokenizer: Tokenizer) -> Text:
  """Returns a row as text: a colour for each packed document, dim where the loss does not count.

  Its targets; where the loss is at a few predicted places, its inputs; of a source and a target, both. What stands for
  a corrupted span is in reverse.
  """
  if "decoder_inputs" in batch:
    text = _coloured(batch["inputs"][row], batch["segments"][row], None, tokenizer)
    text.append("\n-> ", "bold")
    text.append(_coloured(batch["targets"][row], batch["decoder_segments"][row], batch["weights"][row], tokenizer))
  else:
    ids = batch.get("targets", batch.get("inputs"))[row]
    weights = batch["weights"][row] if batch["weights"][row].shape == ids.shape else None
    segments = batch["segments"][row] if "segments" in batch else np.ones_like(ids)
    text = _coloured(ids, segments, weights, tokenizer)
  text.highlight_regex(SENTINEL, "reverse")
  return text


def _coloured(ids: np.ndarray, segments: np.ndarray, weights: np.ndarray | None, tokenizer: Tokenizer) -> Text:
  text = Text()
  kinds = zip(segments.tolist(), (np.ones(len(ids)) if weights is None else weights).tolist(), strict=True)
  for (segment, weight), run in itertools.groupby(enumerate(kinds), key=lambda item: item[1]):
    part = [int(ids[i]) for i, _ in run]  # decoded together: a character may need several
    if segment:
      style = COLOURS[int(segment - 1) % len(COLOURS)]
      text.append(tokenizer.decode(part), style if weight else f"dim {style}")
      text.append("|" if part[-1] == tokenizer.end else "", "dim")
  if padding := int((segments == 0).sum()):
    text.append(f" [{padding} of padding]", "dim")
  return text


def token_table(batch: Batch, row: int, tokenizer: Tokenizer, tokens: int) -> Table:
  """Returns the first tokens of a row, every key of the batch a column, ids with their pieces."""
  found = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
  keys = [key for key in batch if batch[key].ndim == 2 and key not in ("position", "masked_positions", "labels")]
  keys = [key for key in keys if key != "weights" or "masked_positions" not in batch]
  words = [key for key in keys if key.endswith(("inputs", "targets"))]
  found.add_column("token", justify="right")
  for key in keys:
    found.add_column(key, justify="right")
    if key in words:
      found.add_column("")
  for i in range(min(tokens, max(batch[key].shape[1] for key in keys))):
    cells = [str(i)]
    for key in keys:
      inside = i < batch[key].shape[1]
      cells.append(f"{batch[key][row, i]:g}" if inside else "")
      if key in words:
        cells.append(repr(token(int(batch[key][row, i]), tokenizer))[1:-1] if inside else "")
    segment = int(batch["segments"][row, i]) if "segments" in batch and i < batch["segments"].shape[1] else 1
    found.add_row(*map(Text, cells), style=COLOURS[(segment - 1) % len(COLOURS)] if segment else "dim")
  return found


def token(number: int, tokenizer: Tokenizer) -> str:
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
