"""Compression of a saved model: what is applied, what it costs on disk, and how far each parameter moved."""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from lmjax.compression.method import Method
from lmjax.compression.remove import Remove
from lmjax.compression.vocabulary import keep_rows
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.data.tokenizers.cut import cut
from lmjax.inference.table import DisplayTable
from lmjax.layers.leaves import Parameter, dense
from lmjax.parallel.mesh import MeshShape
from lmjax.parallel.sharding import Layout, LogicallyPartitioned, is_partitioned
from lmjax.storage import compressed
from lmjax.storage.base import SavedModel
from lmjax.storage.run import RunFolder
from lmjax.tasks.base import Base
from lmjax.utils import files, pytree
from lmjax.utils.errors import UserError, one_line


@dataclasses.dataclass(frozen=True)
class Report:
  """What a compression has done.

  bytes: of the weights on disk. errors: |new - old| / |old| of each changed parameter.
  """

  parameters: int
  parameters_before: int
  nonzero: int
  bytes_before: int
  bytes_after: int
  errors: dict[str, float]

  def table(self) -> DisplayTable:
    """Returns the error of each changed parameter."""
    rows = tuple((name, f"{error:.4f}") for name, error in self.errors.items())
    return DisplayTable("relative error of each parameter", ("name", "error"), rows)

  def lines(self) -> list[str]:
    """Returns the totals in words."""
    kept = self.nonzero / max(self.parameters, 1)
    before = f"; {self.parameters_before:,} before" if self.parameters != self.parameters_before else ""
    return [
      f"parameters: {self.parameters:,}, of which {self.nonzero:,} are not zero ({kept:.1%}){before}",
      f"weights on disk: {self.bytes_after:,} bytes; {self.bytes_before:,} before; "
      f"{self.bytes_after / (4 * self.parameters):.1%} of float32",
    ]


def compress(
  saved: SavedModel, output: epath.PathLike, methods: Sequence[Method], record: Mapping[str, Any] | None = None,
  inputs: Mapping[str, jax.Array] | None = None, removals: Sequence[Remove] = (),
  batches: Sequence[Mapping[str, jax.Array]] = (), vocabulary: tuple[Tokenizer, Sequence[int]] | None = None,
) -> Report:  # fmt: skip
  """Writes a saved model to a new folder with methods applied to its parameters, one after the other.

  Args:
    record: what config.json says besides the methods, such as the calibration data.
    inputs: a batch for methods that look at what the model reads; see `windows`.
    removals: come before the methods, and change the model's config.
    batches: of the task, for removals by Taylor scores; see `task_batches`.
    vocabulary: a smaller tokenizer and the old ids of its tokens, see `cut`; comes first.

  Raises:
    UserError: the output is there already, or a method cannot be applied; nothing is written then.
  """
  compressed.refuse_existing(output)
  if isinstance(saved, compressed.CompressedFolder) and saved.quantized:
    raise UserError(f"compress: {saved.path} is quantized already; compress the model that it was made of")
  boxes: dict[str, LogicallyPartitioned] = pytree.named_leaves(saved.named, is_leaf=is_partitioned)
  layout = Layout.build(MeshShape().build(jax.local_devices()[:1]), "ddp")
  arrays: dict[str, jax.Array] = pytree.named_leaves(saved.arrays(saved.named, layout))
  _check_targets(methods, boxes)
  parameters_before = sum(box.size() for box in boxes.values())
  config, removed = saved.task.model.config, {}
  changes = {"dtype": "float32"} | ({"remat": "none"} if hasattr(config, "remat") else {})
  model = type(saved.task.model)(dataclasses.replace(config, **changes))
  task = dataclasses.replace(saved.task, model=model)
  tokenizer = None
  if vocabulary:
    tokenizer, kept = vocabulary
    start = getattr(task, "start", 0)  # of a decoder that reads the source once more
    if task.model.kind == "encoder_decoder" and (start >= len(kept) or kept[start] != start):
      raise UserError(f"compress: the decoder starts with the token {start}, whose id would change")
    boxed = {name: box.replace(value=arrays[name]) for name, box in boxes.items()}
    boxes = keep_rows(boxed, kept, config.vocabulary)
    arrays, removed = {name: box.value for name, box in boxes.items()}, {"vocabulary": len(kept)}
    model = type(model)(dataclasses.replace(model.config, **removed))
    task = dataclasses.replace(task, model=model)
  for removal in removals:
    changed, arrays = removal.apply(
      task, {name: box.replace(value=arrays[name]) for name, box in boxes.items()}, batches
    )
    model = type(model)(dataclasses.replace(task.model.config, **changed))
    task, removed = dataclasses.replace(task, model=model), removed | changed
  boxes = {name: box.replace(value=arrays[name]) for name, box in boxes.items()}
  params: dict[str, Parameter] = dict(arrays)
  for method in methods:
    boxed = {name: box.replace(value=params[name]) for name, box in boxes.items()}
    params = method.apply(task, boxed, inputs)
  described = [compressed.describe(method) for method in (*removals, *methods)]
  source = {"source": str(saved.path), "step": saved.step}
  if isinstance(saved, compressed.CompressedFolder):
    source["before"] = saved.config["compression"]
  compressed.save(output, saved, params, source | {"methods": described} | dict(record or {}), removed, tokenizer)
  errors, nonzero = {}, 0
  for name, value in params.items():
    new = dense(value, jnp.float32)[: boxes[name].rows]
    nonzero += int(jnp.count_nonzero(new))
    if value is not arrays[name]:
      old = arrays[name][: boxes[name].rows]
      errors[name] = float(jnp.linalg.norm(jnp.ravel(new - old)) / jnp.maximum(jnp.linalg.norm(jnp.ravel(old)), 1e-30))
  parameters = sum(box.size() for box in boxes.values())
  before = sum(leaf.bytes for leaf in saved.leaves.values())
  after = (epath.Path(output).expanduser() / compressed.WEIGHTS).stat().length
  return Report(parameters, parameters_before, nonzero, before, after, errors)


def _check_targets(methods: Sequence[Method], names: Iterable[str]) -> None:
  """Raises UserError where the pattern that a user gave a method matches no kernel of a model."""
  kernels = [name for name in names if name.endswith("kernel")]
  for method in methods:
    pattern = getattr(method, "targets", None)
    given = pattern != getattr(type(method), "targets", None)  # the default of a dataclass
    if pattern and given and not any(re.search(pattern, name) for name in kernels):
      known = one_line(", ".join(kernels))
      raise UserError(f"compress: --targets {pattern} matches no kernel of this model, which has {known}")


def used_tokens(saved: SavedModel, paths: Sequence[epath.PathLike]) -> tuple[Tokenizer, list[int]]:
  """Returns a tokenizer with the tokens that text files need, as a whole and line by line; see `cut`.

  Raises:
    UserError: a file cannot be read, or the model has no tokenizer that can be cut.
  """
  if saved.tokenizer is None:
    raise UserError(f"compress: {saved.path} has no tokenizer, so its vocabulary cannot be cut")
  texts = [files.read_text(path) for path in paths]
  return cut(saved.tokenizer, [*texts, *(line for text in texts for line in text.splitlines())])


def task_batches(saved: SavedModel, file: epath.PathLike | None, tokens: int, seed: int) -> list[dict[str, jax.Array]]:
  """Returns batches for gradients of the task's loss: of a run's own training data, or for a decoder of a text file.

  Args:
    tokens: of all batches together.

  Raises:
    UserError: there is neither a file nor a run with data, or the file is for no decoder; see `windows`.
  """
  if file is not None:
    if saved.task.model.kind != "decoder" or type(saved.task).scored is Base.scored:
      raise UserError(f"compress: a text file has no targets for {type(saved.task).__name__}; a run has its own data")
    batch = windows(saved, file, tokens, seed)
    last = jnp.arange(batch["inputs"].shape[1]) == batch["inputs"].shape[1] - 1
    batch |= {"targets": jnp.roll(batch["inputs"], -1, axis=1)}
    batch |= {"weights": jnp.where(last[None], 0.0, jnp.ones(batch["inputs"].shape))}
    return [{key: value[i : i + 1] for key, value in batch.items()} for i in range(len(batch["inputs"]))]
  if not isinstance(saved, RunFolder):
    raise UserError("compress: Taylor scores need a run, whose data they are of, or a text file as --calibration")
  run = saved.experiment
  batches = run.data.train(run.tokenizer, run.batch, seed)
  try:
    count = max(tokens // (run.batch * run.data.length), 1)
    keys = run.task.spec(run.batch, run.data.length)
    return [{key: jnp.asarray(batch[key]) for key in keys} for batch in itertools.islice(batches, count)]
  finally:
    batches.close()


def windows(saved: SavedModel, file: epath.PathLike, tokens: int, seed: int) -> dict[str, jax.Array]:
  """Returns a batch of windows of a text file, drawn at random places, for a model of any kind.

  Args:
    tokens: of all windows together; a window is as long as the model takes, 1,024 at most.

  Raises:
    UserError: the file cannot be read or has fewer tokens, or the model does not read tokens.
  """
  model, tokenizer = saved.task.model, saved.tokenizer
  if tokenizer is None or model.kind == "bidirectional_lm":
    raise UserError(
      f"compress: {saved.path} does not read the tokens of a document, so it cannot be calibrated with one"
    )
  length = min(model.config.length, 1024, tokens)
  ids = np.asarray(tokenizer.encode(files.read_text(file)), np.int32)
  rows = tokens // length
  if len(ids) < rows * length:
    raise UserError(f"compress: {file} has {len(ids):,} tokens, and --tokens asks for {rows * length:,}")
  places = np.random.default_rng(seed).permutation(len(ids) // length)[:rows]
  inputs = jnp.asarray(np.stack([ids[place * length :][:length] for place in places]))
  positions = jnp.broadcast_to(jnp.arange(length), inputs.shape)
  batch = {"inputs": inputs, "positions": positions, "segments": jnp.ones_like(inputs)}
  batch |= {f"decoder_{key}": value for key, value in batch.items()}
  return batch | {"token_types": jnp.zeros_like(inputs)}
