"""Preparation of a corpus, with a progress bar, and the data of a config without its run."""

import dataclasses
import time
from typing import Any

from etils import epath
from flax import linen as nn

from lmjax import config as configs
from lmjax.data.pipeline import Reader
from lmjax.data.sources.shards import read_index
from lmjax.data.sources.write_shards import Preparation
from lmjax.data.tokenizers import registry
from lmjax.data.tokenizers.base import Tokenizer
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


def open_data(settings: dict[str, Any], folder: epath.Path | None = None) -> tuple[Reader, Tokenizer]:
  """Returns what makes the rows of a config, and the tokenizer, of its run folder where that has one."""
  data = configs.build(settings["data"], "data", None, Reader)
  data = dataclasses.replace(data, **data.learned())
  saved = None if folder is None else folder / "tokenizer"
  tokenizer = registry.load(saved) if saved and saved.exists() else data.make_tokenizer()
  sizes = {"vocabulary": tokenizer.size, "length": data.length}
  sizes = {key: size for key, size in sizes.items() if key not in settings["model"]}
  return data.for_model(configs.build(settings["model"], "model", None, nn.Module, **sizes)), tokenizer
