"""What a change of a model does to its speed and to its own evaluation: both models, measured in turn."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from lmjax import storage
from lmjax.data.batch import Batch, key_axes
from lmjax.inference.evaluate import evaluate, make_evaluation
from lmjax.inference.table import DisplayTable
from lmjax.parallel.sharding import use_layout
from lmjax.storage.base import LoadedModel, SavedModel
from lmjax.storage.run import RunFolder
from lmjax.tasks.base import Task
from lmjax.utils.errors import UserError
from lmjax.utils.pytree import Tree

WHAT = ("latency", "evaluation")
ROWS, TOKENS, REPEATS = (1, 32), 32, 5


@dataclasses.dataclass(frozen=True)
class BeforeAfter:
  """Two values of each quantity, before and after.

  latency: seconds of a forward pass, with scores where the task has any, by its rows of `tokens` tokens; a median.
  evaluation: by the names of metrics.
  """

  tokens: int = TOKENS
  latency: dict[int, tuple[float, float]] = dataclasses.field(default_factory=dict)
  evaluation: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)

  def table(self) -> DisplayTable:
    """Returns a row for each quantity."""
    rows = [(f"milliseconds, {n} x {self.tokens} tokens", *(1e3 * s for s in pair)) for n, pair in self.latency.items()]
    rows += [(name, *pair) for name, pair in self.evaluation.items()]
    cells = tuple((name, f"{old:.4g}", f"{new:.4g}", f"{new / old:.3f}" if old else "") for name, old, new in rows)
    return DisplayTable("before and after", ("", "before", "after", "ratio"), cells)


def check(what: Sequence[str], saved: SavedModel, config: str | None) -> None:
  """Raises UserError for a quantity that is unknown, or an evaluation that the model cannot have."""
  if unknown := [name for name in what if name not in WHAT]:
    raise UserError(f"compress: --measure is {' and '.join(WHAT)}, separated by commas, not {unknown[0]!r}")
  if config and "evaluation" not in what:
    raise UserError("compress: --config is for --measure evaluation")
  if config and (isinstance(saved, RunFolder) or "run" in saved.config):
    raise UserError(f"compress: {saved.path} is of a run with evaluators of its own: leave out --config")


def measure(
  before: SavedModel, after: epath.PathLike, what: Sequence[str] = WHAT, config: str | None = None
) -> BeforeAfter:
  """Returns measurements of a saved model, and of what was made of it, on this machine.

  Args:
    what: of `WHAT`. The evaluation is that of a run, or of `config`; other models have none.
    config: the path of a config with the evaluators, for what is not a run.
  """
  if not what:
    return BeforeAfter()
  pair = before.load(), storage.open(after).load()
  tokens, seconds, values = min(TOKENS, *(loaded.length for loaded in pair)), {}, {}
  if "latency" in what:
    seconds = {rows: latencies(pair, rows, tokens) for rows in ROWS}
  if "evaluation" in what and (config or pair[0].run is not None):
    old, new = (evaluate(loaded, make_evaluation(loaded, before.path, config, {})) for loaded in pair)
    values = {name: (float(old[name]), float(new[name])) for name in old if name != "step"}
  return BeforeAfter(tokens, seconds, values)


def latencies(models: Sequence[LoadedModel], rows: int, tokens: int) -> tuple[float, ...]:
  """Returns the median seconds of a forward pass of each model; they take turns, so that other load meets them all."""
  runs = []
  for loaded in models:
    with use_layout(loaded.layout):
      batch = rows_of(loaded.task, rows, tokens)
      run = jax.jit(functools.partial(computed, loaded.task))  # not ahead of time, which refuses int4
      jax.block_until_ready(run(loaded.params, batch))
    runs.append((run, loaded.params, batch))
  seconds: list[list[float]] = [[] for _ in runs]
  for _ in range(REPEATS):
    for taken, loaded, (run, params, batch) in zip(seconds, models, runs, strict=True):
      with use_layout(loaded.layout):
        start = time.perf_counter()
        jax.block_until_ready(run(params, batch))
        taken.append(time.perf_counter() - start)
  return tuple(statistics.median(taken) for taken in seconds)


def computed(task: Task, params: Tree, batch: Batch) -> tuple[jax.Array, jax.Array | None]:
  """Returns the final vectors, and the scores where the task has any."""
  outputs = task.forward(params, batch)
  return outputs.hidden, outputs.logits


def rows_of(task: Task, rows: int, tokens: int) -> Batch:
  """Returns a batch of a task: rows without padding, of one document each."""
  spec, rng = task.spec(rows, tokens), np.random.default_rng(0)
  axes = key_axes(spec)

  def values(key: str, shape: tuple[int, ...]) -> np.ndarray:
    if key.endswith("inputs"):
      return rng.integers(0, task.model.config.vocabulary, shape)
    if key.endswith("positions") and axes.get(key, "")[1:] in ("L", "T"):
      return np.broadcast_to(np.arange(shape[1]), shape)
    return np.zeros(shape) if key in ("token_types", "prefix", "masked_positions") else np.ones(shape)

  return {key: jnp.asarray(values(key, leaf.shape), leaf.dtype) for key, leaf in spec.items()}
