"""Preparation of a corpus, with a progress bar."""

import time

from etils import epath

from lmjax.data.sources.shards import read_index
from lmjax.data.sources.write_shards import Preparation
from lmjax.inference.progress import ProgressBar


def prepared(preparation: Preparation, output: epath.PathLike, workers: int) -> str:
  """Writes a folder of prepared data, and returns its counts and speed in a line; empty where it was complete."""
  counts = first = None
  began = time.perf_counter()
  with ProgressBar("prepare", len(preparation.source), unit="documents") as progress:
    for read, counts in preparation.run(output, workers):
      first = first or counts["bytes"]
      speed = (counts["bytes"] - first) / 1e6 / (time.perf_counter() - began)
      progress.update(read, note=f"{speed:.1f} MB/s")
  if counts is None:
    return ""
  seconds = time.perf_counter() - began
  speed = counts["bytes"] / 1e6 / seconds / max(workers, 1)
  keys = ("documents", "tokens", "duplicates", "filtered", "skipped")
  summary = ", ".join(f"{counts[key]:,} {key}" for key in keys)
  first_skipped = "".join(f"\nskipped: {record}" for record in read_index(output)["skipped"][:1])
  return f"{output}: {summary}; {seconds:.1f} s, {speed:.2f} MB/s of text per process{first_skipped}"
