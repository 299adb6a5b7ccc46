"""Everything a config names, built: what training, planning and sampling share."""

import dataclasses
import functools
import json
import re
from collections.abc import Callable
from typing import Any

import jax
from etils import epath
from flax import linen as nn

from lmjax import checkpoint, logs, sections
from lmjax.compression.base import ParamTransform
from lmjax.data.pipeline import Reader
from lmjax.data.tokenizers import registry
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.evals.base import Evaluator
from lmjax.optim import Optimizer, averaged
from lmjax.parallel import hosts
from lmjax.parallel.mesh import MeshShape
from lmjax.parallel.sharding import Layout, count_parameters
from lmjax.state import Loaded, TrainState, make_frozen, make_init, named_parameters, with_models
from lmjax.tasks.base import Base, FrozenModel
from lmjax.utils import files, trust
from lmjax.utils.errors import UserError
from lmjax.utils.fields import Fields
from lmjax.utils.pytree import Tree


@dataclasses.dataclass(frozen=True)
class Start:
  """Where the parameters of a new run come from: the config section `start`. Patterns are regular expressions.

  path: a run folder, a checkpoint, or a Hugging Face or bilm-tf folder; empty to start from scratch.
  step: the checkpoint of a run folder; None is the latest, 0 is step 0.
  parts: parameters to load, by their path names, `model/embed/table`.
  new: parameters that may be missing in the source; they are then initialised as in a run from scratch.
  new_layers: how many layers at the top are, too (Zhang et al., 2021, arXiv:2006.05987).
  layers: the layers of the source, from 0, that take the places of this model's layers; empty is all of them.
  """

  path: str = ""
  step: int | None = None
  parts: str = ".*"
  new: str = "heads/.*"
  new_layers: int = 0
  layers: tuple[int, ...] = ()

  def __post_init__(self):
    for name in ("parts", "new"):
      try:
        re.compile(getattr(self, name))
      except re.error as error:
        raise ValueError(f"{name}: {getattr(self, name)!r} is not a regular expression: {error}") from error


MOST_ROWS = 2**20  # of a batch: each has a stream of its own, and more would fill the memory before the first step
SECTIONS: dict[str, type] = {"optim": Optimizer, "start": Start}  # of a config, whose class is always the same


@dataclasses.dataclass(frozen=True)
class Experiment:
  """The parts of a run."""

  seed: int
  steps: int
  batch: int  # rows of the global batch
  layout: Layout
  start: Start
  data: Reader
  tokenizer: Tokenizer
  task: Base
  optimizer: Optimizer
  transform: ParamTransform
  evaluators: dict[str, Evaluator]
  evaluate_every: int  # steps; 0 only at the end
  checkpoint: checkpoint.CheckpointConfig
  log: logs.LogConfig
  models: dict[str, FrozenModel] = dataclasses.field(default_factory=dict)  # that the task only reads, once loaded

  @functools.cached_property
  def named(self) -> Tree:
    """The abstract parameters of the model and its heads with their axis names."""
    return named_parameters(self.task, self.batch, self.data.length)

  @functools.cached_property
  def rows(self) -> int:
    """The rows of an update; not those of the batch where the task collects its own."""
    return next(iter(self.task.spec(self.batch, self.data.length).values())).shape[0]

  @functools.cached_property
  def parameters(self) -> int:
    """The number of parameters, vocabulary padding not counted."""
    return count_parameters(self.named)

  @functools.cached_property
  def trained(self) -> int:
    """The number of parameters that are trained, not those that a transform keeps frozen."""
    trained, _, frozen = jax.eval_shape(self.transform.init, self.named)
    return count_parameters(trained) if jax.tree.leaves(frozen) else self.parameters

  def init(self) -> tuple[Callable[[Loaded], TrainState], TrainState]:
    """Returns init(loaded) -> a new state, and the abstract state (see `make_init`), both with the frozen models."""
    tx = self.optimizer.build(self.steps)
    init, abstract = make_init(self.task, tx, self.transform, self.layout, self.batch, self.data.length, self.seed)
    models = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), self.models)
    return lambda loaded: with_models(init(loaded), self.models), with_models(abstract, models)

  def state(self, abstract: bool = False) -> TrainState:
    """Returns a new state from scratch, or its shapes and shardings."""
    init, shapes = self.init()
    return shapes if abstract else init({})

  def frozen(self, loaded: Loaded, abstract: TrainState) -> Tree:
    """Returns what the transform keeps frozen, made again from the weights that the run started from."""
    return make_frozen(self.init()[0], abstract)(loaded)

  def model_params(self, state: TrainState) -> Tree:
    """Returns the parameters as the model sees them in training."""
    return self.transform.forward(state.params, state.transform, state.frozen.transform)

  def eval_params(self, state: TrainState) -> Tree:
    """Returns the parameters as the model sees them in evaluation: the moving average, where one is kept."""
    return self.model_params(state.replace(params=averaged(state.opt_state, state.params)))


def build(
  settings: dict[str, Any], workdir: epath.PathLike | None = None, devices: list[jax.Device] | None = None,
  vocabulary: int | None = None,
) -> Experiment:  # fmt: skip
  """Returns the experiment of a config's plain data; the tokenizer comes from the run folder where it has one.

  Args:
    devices: of the mesh, by default all; where they are given, to plan for, data and tokenizer need not exist.
    vocabulary: size of a tokenizer that does not exist yet.

  Raises:
    UserError: the first invalid value in the config.
  """
  fields = Fields(settings, "", "config.")
  seed = fields.integer("seed", most=2**63 - 1)
  steps, batch = fields.integer("steps", least=1), fields.integer("batch", least=1, most=MOST_ROWS)
  layout = Layout.build(sections.build(settings["mesh"], "mesh", MeshShape).build(devices), settings["rules"])
  optimizer = sections.build(settings["optim"], "optim", Optimizer)
  evals = fields.section("evals")
  every = evals.integer("every", 0)
  if settings["checkpoint"].get("patience") and not every:
    raise UserError("config.checkpoint.patience counts evaluations: set config.evals.every")
  evaluators = {key: sections.build(evals.get(key), f"evals.{key}", None, Evaluator) for key in evals.unused()}
  data = sections.build(settings["data"], "data", None, Reader)
  settings["data"] |= (learned := data.learned() if devices is None else {})  # config.json keeps it
  data = dataclasses.replace(data, **learned)
  kept = files.expand(workdir) / "tokenizer" if workdir is not None else None
  if kept is not None and kept.exists():
    with trust.trusting(*trust.named(settings)):  # a tokenizer of the config's own class
      tokenizer = registry.load(kept)
  else:
    tokenizer = data.make_tokenizer() if devices is None else data.tokenizer.expected(vocabulary)
  start = sections.build(settings["start"], "start", Start)
  sizes = {"vocabulary": tokenizer.size, "length": data.length}
  shared = {key: size for key, size in sizes.items() if key not in settings["model"]}
  model = sections.build(settings["model"], "model", None, nn.Module, **shared)
  for key, size in sizes.items():
    if (own := getattr(model.config, key, size)) < size:  # larger where the model comes from a folder
      raise UserError(f"config.model.{key} is {own:,}, and the data and its tokenizer need {size:,}")
  data = data.for_model(model)
  task = sections.build(settings["task"], "task", None, Base, model=model, **data.shared(tokenizer))
  carried = jax.tree.leaves(jax.eval_shape(lambda: task.initial_carry(batch)))
  if optimizer.microbatches > 1 and (task.whole_batch or any(leaf.shape[:1] == (batch,) for leaf in carried)):
    raise UserError("config.optim.microbatches must be 1 for tasks that carry state or compare the rows of a batch")
  run = Experiment(
    seed=seed,
    steps=steps,
    batch=batch,
    layout=layout,
    start=start,
    data=data,
    tokenizer=tokenizer,
    task=task,
    optimizer=optimizer,
    transform=sections.build(settings["transform"], "transform", None, ParamTransform, seed=seed),
    evaluators=evaluators,
    evaluate_every=every,
    checkpoint=sections.build(settings["checkpoint"], "checkpoint", checkpoint.CheckpointConfig),
    log=sections.build(settings["log"], "log", logs.LogConfig),
  )
  if run.rows % optimizer.microbatches:
    raise UserError(f"config.optim.microbatches: {optimizer.microbatches} does not divide the batch of {run.rows}")
  return run


class CorruptConfig(UserError):
  """The config.json of a run folder cannot be read."""


def load_config(workdir: epath.PathLike, given: dict[str, Any] | None = None) -> dict[str, Any]:
  """Returns the config of a run folder, in the names of this version.

  Args:
    given: the config of the user that it will be compared with, see `trust.mark`.

  Raises:
    UserError: the folder is not a run folder, was written by a newer version, is corrupt, or names what only a trusted
      one may.
  """
  workdir = files.find(workdir)
  file = workdir / "config.json"
  trust.check_links(workdir)
  if not file.exists():
    raise UserError(f"{workdir} is not a run folder: it has no config.json; train first, or choose another --workdir")
  try:
    settings = files.parse_json(files.read_bytes(file))
  except ValueError as error:
    raise CorruptConfig(f"{file} {error}; to write that of a run again, repeat its lmjax train command") from error
  return trust.mark(sections.upgrade(settings, str(file)), file, given and trust.named(given))


def check_or_save_config(settings: dict[str, Any], tokenizer: Tokenizer, workdir: epath.Path) -> None:
  """Writes config and tokenizer into a run folder, or checks them against those in it.

  The number of steps, and how often things are logged, evaluated and saved, may change when a run resumes; its data may
  if config.data.version is raised; the path of `start` may if its weights are the same. A corrupt
  config.json is kept under another name and written again.

  Raises:
    UserError: the folder belongs to another config.
  """
  files.make_folder(workdir)
  trust.check_links(workdir)  # files are written, too
  file, before, corrupt = workdir / "config.json", None, None
  try:
    before = load_config(workdir, settings) if file.exists() else None
  except CorruptConfig as error:
    corrupt = error
  if before:
    free = ["steps", "evals", "checkpoint", "log", "mesh", "rules"]
    advice = "choose another --workdir, or give the same config to resume"
    if settings["data"].get("version", 0) > before["data"].get("version", 0):
      free.append("data")
    elif sections.complete(before["data"], "data") != sections.complete(settings["data"], "data"):
      advice += f" (with other data: --config.data.version={before['data'].get('version', 0) + 1})"
    if before["start"].get("path") and settings["start"].get("path"):  # the sources are compared by sources.json
      before["start"] = before["start"] | {"path": settings["start"]["path"]}
    for key in (key for key in settings if key not in free):
      was, now = (sections.complete(values[key], key, SECTIONS.get(key)) for values in (before, settings))
      if was != now:
        raise UserError(f"{workdir} holds a run of another config: {_difference(key, was, now)}; {advice}")
  hosts.wait_for_all("config read")
  if jax.process_index() == 0:
    if corrupt:
      kept = file.with_name("config.json.corrupt")
      logs.console.print(f"{file} {corrupt.__cause__}; it is written again, and kept as {kept}")
      with files.writing(kept):
        file.replace(kept)
    # The config first: a tokenizer in a folder without one would be taken for that of any other config.
    files.write(file, json.dumps({"format": sections.FORMAT} | settings, indent=2))
    if not (workdir / "tokenizer").exists():
      with files.new_folder(workdir / "tokenizer") as folder:
        tokenizer.save(folder)
  hosts.wait_for_all("config written")


def _difference(where: str, before: Any, now: Any) -> str:
  """Returns the first leaf in which two parts differ, in words."""
  if isinstance(before, dict) and isinstance(now, dict):
    for key in {**before, **now}:
      if before.get(key) != now.get(key):
        return _difference(f"{where}.{key}", before.get(key), now.get(key))
  return f"config.{where} was {before!r} and is {now!r}"
