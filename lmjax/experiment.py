"""Everything a config names, built: what training, planning and sampling share."""

import dataclasses
import functools
import json
from typing import Any

import jax
from etils import epath

from lmjax import checkpoint, config, logs
from lmjax.compression.base import ParamTransform
from lmjax.data.pipeline import Reader
from lmjax.data.tokenizers import registry
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.evals.base import Evaluator
from lmjax.optim import Optimizer, averaged
from lmjax.parallel import hosts
from lmjax.parallel.mesh import MeshShape
from lmjax.parallel.sharding import Layout, count_parameters
from lmjax.state import TrainState, init_state, named_parameters
from lmjax.tasks.base import Task
from lmjax.utils.errors import UserError
from lmjax.utils.pytree import Tree


@dataclasses.dataclass(frozen=True)
class Experiment:
  """The parts of a run."""

  seed: int
  steps: int
  batch: int  # rows of the global batch
  layout: Layout
  data: Reader
  tokenizer: Tokenizer
  task: Task
  optimizer: Optimizer
  transform: ParamTransform
  evaluators: dict[str, Evaluator]
  evaluate_every: int  # steps; 0 only at the end
  checkpoint: checkpoint.CheckpointConfig
  log: logs.LogConfig

  @functools.cached_property
  def named(self) -> Tree:
    """The abstract parameters with their axis names."""
    return named_parameters(self.task, self.batch, self.data.length)

  @functools.cached_property
  def parameters(self) -> int:
    """How many there are, vocabulary padding not counted."""
    return count_parameters(self.named)

  def state(self, abstract: bool = False) -> TrainState:
    """Returns a fresh state, or its shapes and shardings."""
    tx = self.optimizer.build(self.steps)
    return init_state(
      self.task, tx, self.transform, self.layout, self.batch, self.data.length, self.seed, abstract=abstract
    )

  def eval_params(self, state: TrainState) -> Tree:
    """Returns the parameters the model sees in evaluation: the moving average, where one is kept, transformed."""
    params = averaged(state.opt_state, state.params)
    return self.transform.forward(params, state.transform, state.frozen)

  def load(self, workdir: epath.PathLike, step: int | None = None) -> tuple[Tree, int]:
    """Returns the parameters of a run's checkpoint as the model sees them, and the step."""
    state, step = self._saved(workdir, step)
    return self.eval_params(state), step

  def merged(self, workdir: epath.PathLike, step: int | None = None) -> Tree:
    """Returns the parameters of a run's checkpoint as a plain tree for export, what the transform adds merged in."""
    state, _ = self._saved(workdir, step)
    return self.transform.merge(averaged(state.opt_state, state.params), state.transform, state.frozen)

  def _saved(self, workdir: epath.PathLike, step: int | None) -> tuple[TrainState, int]:
    """Returns a state of which only what the model is made of is read, and its step."""
    state = self.state(abstract=True)
    names = ("params", "opt_state", "transform") if self.optimizer.ema else ("params", "transform")
    found, step = checkpoint.load(workdir, {name: getattr(state, name) for name in names}, step)
    return state.replace(**found), step


def build(
  settings: dict[str, Any],
  workdir: epath.PathLike | None = None,
  devices: list[jax.Device] | None = None,
  vocabulary: int | None = None,
) -> Experiment:
  """Returns the experiment of a config's plain data; the tokenizer comes from the run folder where it has one.

  Args:
    devices: those of the mesh, by default all; with absent ones, to plan for, no data or tokenizer need be there.
    vocabulary: ids of a tokenizer that is not there.

  Raises:
    UserError: the first thing in the config that cannot be.
  """
  for key in ("seed", "steps", "batch"):
    value = settings[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < (0 if key == "seed" else 1):
      raise UserError(f"config.{key} is a whole number of at least {0 if key == 'seed' else 1}, not {value!r}")
  layout = Layout.build(config.build(settings["mesh"], "mesh", MeshShape).build(devices), settings["rules"])
  optimizer = config.build(settings["optim"], "optim", Optimizer)
  if settings["batch"] % optimizer.microbatches:
    raise UserError(
      f"config.optim.microbatches: {optimizer.microbatches} does not divide the batch of {settings['batch']}"
    )
  data = config.build(settings["data"], "data")
  kept = epath.Path(workdir) / "tokenizer" if workdir is not None else None
  if kept is not None and kept.exists():
    tokenizer = registry.load(kept)
  else:
    tokenizer = data.make_tokenizer() if devices is None else data.tokenizer.expected(vocabulary)
  model = config.build(settings["model"], "model", vocabulary=tokenizer.size, length=data.length)
  task = config.build(settings["task"], "task", model=model, **data.shared())
  carried = jax.tree.leaves(jax.eval_shape(lambda: task.initial_carry(settings["batch"])))
  if optimizer.microbatches > 1 and any(leaf.shape[:1] == (settings["batch"],) for leaf in carried):
    raise UserError("config.optim.microbatches: 1 is all there can be where every row goes on in the next batch")
  evals = dict(settings["evals"])
  every = evals.pop("every", 0)
  return Experiment(
    seed=settings["seed"],
    steps=settings["steps"],
    batch=settings["batch"],
    layout=layout,
    data=data,
    tokenizer=tokenizer,
    task=task,
    optimizer=optimizer,
    transform=config.build(settings["transform"], "transform"),
    evaluators={name: config.build(spec, f"evals.{name}") for name, spec in evals.items()},
    evaluate_every=every,
    checkpoint=config.build(settings["checkpoint"], "checkpoint", checkpoint.CheckpointConfig),
    log=config.build(settings["log"], "log", logs.LogConfig),
  )


def load_config(workdir: epath.PathLike) -> dict[str, Any]:
  """Returns the config a run folder keeps.

  Raises:
    UserError: the folder is no run folder.
  """
  file = epath.Path(workdir) / "config.json"
  if not file.exists():
    raise UserError(f"{workdir} is no run folder: it has no config.json; train first, or name another --workdir")
  try:
    return json.loads(file.read_text())
  except json.JSONDecodeError as error:
    raise UserError(f"{file}:{error.lineno}: is not JSON: {error.msg}") from error


def check_or_save_config(settings: dict[str, Any], tokenizer: Tokenizer, workdir: epath.Path) -> None:
  """Writes config and tokenizer into a run folder, or checks them against what it keeps.

  The number of steps, and how often things are logged, evaluated and saved, may change when a run goes on; its data may
  where config.data.version is raised.

  Raises:
    UserError: the folder belongs to another config.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  if (workdir / "config.json").exists():
    before = load_config(workdir)
    free = ["steps", "evals", "checkpoint", "log", "mesh", "rules"]
    advice = "choose another --workdir, or give the same config to go on"
    if settings["data"].get("version", 0) > before["data"].get("version", 0):
      free.append("data")
    elif before["data"] != settings["data"]:
      advice += f" (with other data: --config.data.version={before['data'].get('version', 0) + 1})"
    for key, value in settings.items():
      if key not in free and before.get(key) != value:
        raise UserError(
          f"{workdir} holds a run of another config: {_difference(key, before.get(key), value)}; {advice}"
        )
  hosts.wait_for_all("config read")
  if jax.process_index() == 0:
    if not (workdir / "tokenizer").exists():
      tokenizer.save(workdir / "tokenizer")
    (workdir / "config.json").write_text(json.dumps(settings, indent=2))
  hosts.wait_for_all("config written")


def _difference(where: str, before: Any, now: Any) -> str:
  """Returns the first leaf in which two parts differ, in words."""
  if isinstance(before, dict) and isinstance(now, dict):
    for key in {**before, **now}:
      if before.get(key) != now.get(key):
        return _difference(f"{where}.{key}", before.get(key), now.get(key))
  return f"config.{where} was {before!r} and is {now!r}"
