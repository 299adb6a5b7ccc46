"""Previews of data as the model reads it: rows in colour, tables of tokens, histograms of document lengths."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath
from rich.console import RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text as RichText

from lmjax.data.batch import LEGEND, Batch, key_axes
from lmjax.data.lengths import length_of
from lmjax.data.objectives.causal import Text
from lmjax.data.pipeline import Reader
from lmjax.data.sources.base import BadRecord, Encoded, read_document
from lmjax.data.sources.dialogues import Dialogue
from lmjax.data.sources.pair import Pair
from lmjax.data.sources.preferences import Preference
from lmjax.data.sources.shards import Prepared, check_sums, read_index
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.data.tokenizers.registry import load
from lmjax.utils.errors import UserError, one_line
from lmjax.utils.files import replacing

COLOURS = ("cyan", "yellow", "magenta", "green", "blue", "red")  # of segments, repeated
NUM_BINS = 12
TEXTS = (str, Pair, Dialogue, Preference)
SENTINEL = r"<extra_id_\d+>"


def open_prepared(folder: epath.PathLike) -> tuple[Reader, Tokenizer, str]:
  """Returns the first split of prepared data in rows of 256 tokens, its tokenizer, and its counts as a string.

  Raises:
    UserError: the folder is not prepared data, or a checksum differs.
  """
  index = read_index(folder)
  check_sums(folder)
  source = Prepared(str(folder), next(iter(index["splits"])))
  return (
    Text(source, source, 256),
    load(folder),
    ", ".join(f"{value:,} {key}" for key, value in index["counts"].items()),
  )


def preview(
  data: Reader, tokenizer: Tokenizer, batch: int, seed: int, rows: int, tokens: int, plot: epath.Path | None = None
) -> Iterator[str | RenderableType]:
  """Yields the first rows of the first batch of a run, then the number of documents and their lengths.

  Args:
    rows: number of rows.
    tokens: number of tokens of each row to list.
    plot: an image file for the histogram of lengths, or None.
  """
  batches = data.train(tokenizer, batch, seed)
  first = next(batches)
  batches.close()
  for row in range(min(rows, batch)):
    yield Rule(f"row {row}", align="left")
    yield render_row(first, row, tokenizer)
    yield token_table(first, row, tokenizer, tokens)
  lengths = document_lengths(data, tokenizer)
  yield Rule("counts", align="left")
  yield (
    f"{len(data.source):,} documents, {np.mean(lengths):,.0f} tokens each (median {np.median(lengths):,.0f}, longest "
    f"{max(lengths):,}, in a sample of {len(lengths):,}); a batch is {batch}x{data.length}, "
    f"{batches.padding:.1%} padding"
  )
  yield length_table(lengths)
  if plot:
    plot_lengths(lengths, plot)
    yield f"histogram of lengths: {plot}"


def render_row(batch: Batch, row: int, tokenizer: Tokenizer) -> RichText:
  """Returns a row as text: a colour for each packed document, dim where the loss weight is 0, sentinels reversed.

  The text is that of the targets, of the inputs if there are masked positions, or of both the source and the target.
  """
  if "decoder_inputs" in batch:
    text = _coloured(batch["inputs"][row], batch["segments"][row], None, tokenizer)
    text.append("\n-> ", "bold")
    text.append(_coloured(batch["targets"][row], batch["decoder_segments"][row], batch["weights"][row], tokenizer))
  else:
    ids = batch.get("targets", batch.get("inputs"))[row]
    weights = batch["weights"][row] if key_axes(batch)["weights"] == "BL" else None
    segments = batch["segments"][row] if "segments" in batch else np.ones_like(ids)
    text = _coloured(ids, segments, weights, tokenizer)
  text.highlight_regex(SENTINEL, "reverse")
  return text


def _coloured(ids: np.ndarray, segments: np.ndarray, weights: np.ndarray | None, tokenizer: Tokenizer) -> RichText:
  text = RichText()
  styles = zip(segments.tolist(), (np.ones(len(ids)) if weights is None else weights).tolist(), strict=True)
  for (segment, weight), run in itertools.groupby(enumerate(styles), key=lambda item: item[1]):
    part = [int(ids[i]) for i, _ in run]  # decoded together, because a character may have several tokens
    if segment:
      style = COLOURS[int(segment - 1) % len(COLOURS)]
      printed = "\n".join(one_line(line, len(line) * 10) for line in tokenizer.decode(part).split("\n"))
      text.append(printed, style if weight else f"dim {style}")
      text.append("|" if part[-1] == tokenizer.end else "", "dim")
  if padding := int((segments == 0).sum()):
    text.append(f" [{padding} padding]", "dim")
  return text


def token_table(batch: Batch, row: int, tokenizer: Tokenizer, tokens: int) -> Table:
  """Returns the first tokens of a row, with a column for each batch key that has a value per token."""
  table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
  keys = [key for key, axes in key_axes(batch).items() if axes in ("BL", "BT")]
  id_keys = [key for key in keys if LEGEND[key].content.endswith("token")]
  table.add_column("token", justify="right")
  for key in keys:
    table.add_column(key, justify="right")
    if key in id_keys:
      table.add_column("")
  for i in range(min(tokens, max(batch[key].shape[1] for key in keys))):
    cells = [str(i)]
    for key in keys:
      exists = i < batch[key].shape[1]
      cells.append(f"{batch[key][row, i]:g}" if exists else "")
      if key in id_keys:
        cells.append(repr(_token(int(batch[key][row, i]), tokenizer))[1:-1] if exists else "")
    segment = int(batch["segments"][row, i]) if "segments" in batch and i < batch["segments"].shape[1] else 1
    table.add_row(*map(RichText, cells), style=COLOURS[(segment - 1) % len(COLOURS)] if segment else "dim")
  return table


def _token(number: int, tokenizer: Tokenizer) -> str:
  """Returns the text of an id; `<start>` and `<end>` for the start and end tokens."""
  if number in (tokenizer.start, tokenizer.end):
    return "<end>" if number == tokenizer.end else "<start>"
  return tokenizer.decode([number])


def document_lengths(data: Reader, tokenizer: Tokenizer, sample: int = 5000) -> list[int]:
  """Returns the number of tokens in about `sample` documents at regular intervals; in pairs, those of the target.

  Of a document that is not text, such as a question, its rows count.

  Raises:
    UserError: no document can be read.
  """
  source, encode = data.source, data.documents(data.source, tokenizer, 0, 1).encode
  documents = [read_document(source, i) for i in range(0, len(source), max(len(source) // sample, 1))]
  texts = [_text(document) for document in documents if isinstance(document, TEXTS)]
  rows = [encode(document) for document in documents if not isinstance(document, (*TEXTS, Encoded, BadRecord))]
  lengths = [len(document.ids) for document in documents if isinstance(document, Encoded)]
  lengths += [len(ids) for ids in tokenizer.encode_many(texts)]
  lengths += [length_of(row[0]) for row in rows if not isinstance(row, BadRecord)]
  if not lengths:
    raise UserError("prepare: none of the documents in the source can be read")
  return lengths


def _text(document: str | Pair | Dialogue | Preference) -> str:
  """Returns the text of a document, without a template; of a comparison, with the best answer."""
  if isinstance(document, Dialogue):
    return "\n".join(message.content for message in document.messages)
  if isinstance(document, Preference):
    return "\n".join([*(message.content for message in document.prompt), document.answers[0]])
  return document if isinstance(document, str) else document.target


def length_table(lengths: Sequence[int]) -> Table:
  """Returns a histogram of document lengths for a terminal."""
  counts, edges = _histogram(lengths)
  table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
  table.add_column("tokens", justify="right")
  table.add_column("documents", justify="right")
  table.add_column("")
  for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
    table.add_row(f"{int(low):,}-{int(high) - 1:,}", f"{count:,}", "█" * round(40 * count / counts.max()))
  return table


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
  with replacing(file) as stream:
    figure.savefig(stream, format="png", dpi=120)


def _histogram(lengths: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
  """Returns the counts of bins and their integer edges, each about the same factor above the one before."""
  edges = np.geomspace(max(min(lengths), 1), max(lengths) + 1, NUM_BINS + 1)
  edges = np.unique(np.concatenate([np.floor(edges[:-1]), [max(lengths) + 1]]))
  return np.histogram(np.maximum(lengths, 1), edges)[0], edges
