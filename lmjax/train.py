"""The training loop: the only one, and the only caller of optax.apply_updates.

    lmjax train --config configs/gpt2.py:size=124m --workdir runs/gpt2 --config.optim.peak_lr=3e-4

Rerun the same command on the same folder to resume.
"""

import datetime
import signal
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from etils import epath

from lmjax import experiment as experiments
from lmjax.checkpoint import Checkpoints, DataState, best_of, data_state
from lmjax.compression.base import ParamTransform
from lmjax.data.batch import Batch, check
from lmjax.evals.base import Context
from lmjax.experiment import Experiment
from lmjax.layers.backend import compiler_options
from lmjax.logs import Clock, Log, read_metrics, screen
from lmjax.parallel import hosts, run_lock
from lmjax.parallel.sharding import use_layout
from lmjax.planning.flops import FORMULA, train_step_flops
from lmjax.planning.hardware import EnergyMeter, chip_of
from lmjax.state import FrozenState, TrainState
from lmjax.storage.start import attach_sources, load, with_frozen
from lmjax.tasks.base import Base, Collected, weighted_sum
from lmjax.utils import names
from lmjax.utils.errors import DivergedError, UserError
from lmjax.utils.files import expand
from lmjax.utils.metrics import Mean, add

COLLECT = 0x636F6C  # folded into the run's key for `collect`: no step folds it in
Profile = Callable[[int, TrainState], None]
PREEMPTED = 75  # exit code after SIGTERM: the state is saved, rerun the same command to resume


def make_step(
  task: Base, tx: optax.GradientTransformation, transform: ParamTransform, microbatches: int = 1
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, dict[str, Any]]]:
  """Returns step(state, batch, rng) -> (state, metrics), to be jitted with its state donated.

  metrics: each loss term and metric of the task as a Mean, their weighted sum `loss`, `gradient_norm`, whether both are
  `finite`, and the metrics of the transform.
  """

  def step(state: TrainState, batch: Batch, rng: jax.Array) -> tuple[TrainState, dict[str, Any]]:
    rng = jax.random.fold_in(rng, state.step)
    counts = task.counts(batch)

    def loss_fn(params, carry, batch, rng):
      model_params = transform.forward(params, state.transform, state.frozen.transform)
      terms, carry = task.loss(model_params, state.frozen.models, carry, batch, rng=rng)
      return weighted_sum(task, terms, counts), (terms, carry)

    grads, terms, carry = accumulate(loss_fn, microbatches)(state.params, state.carry, batch, rng)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    params, transform_state = transform.update(params, grads, state.transform, state.step)
    norm = optax.tree.norm(grads)
    loss = weighted_sum(task, terms, counts)
    metrics = terms | {"loss": Mean(loss, jnp.ones(())), "gradient_norm": norm, "finite": jnp.isfinite(loss + norm)}
    metrics |= transform.metrics(params, transform_state)
    metrics["counted"] = jnp.all(jnp.array([jnp.isclose(terms[k].count, counts[k], rtol=1e-3) for k in counts]))
    new = dict(step=state.step + 1, params=params, opt_state=opt_state, transform=transform_state, carry=carry)
    return state.replace(**new), metrics

  return step


def jit_step(run: Experiment, state: TrainState) -> jax.stages.Wrapped:
  """Returns the jitted step(state, frozen, batch, rng) of a run, which `train` executes and `plan` compiles.

  Its state has no frozen part (see `TrainState.split`), which is an argument of its own: the state is donated, and what
  is frozen is read again by the next step and by evaluators. With `jax_disable_jit` or `jax_debug_nans` nothing is
  donated: jax runs the operations again, one by one.

  Args:
    state: the state, or an abstract one, whose shardings the next state gets.
  """
  step = make_step(run.task, run.optimizer.build(run.steps), run.transform, run.optimizer.microbatches)

  def split_step(state: TrainState, frozen: FrozenState, batch: Batch, rng: jax.Array):
    state, metrics = step(state.replace(frozen=frozen), batch, rng)
    return state.split()[0], metrics

  if _eager():
    return jax.jit(split_step)
  shardings = (jax.tree.map(lambda leaf: leaf.sharding, state.split()[0]), None)
  return jax.jit(split_step, donate_argnums=0, out_shardings=shardings, compiler_options=compiler_options())


def _eager() -> bool:
  """Whether jax runs or checks every operation separately, for debugging."""
  return jax.config.jax_disable_jit or jax.config.jax_debug_nans  # type: ignore[attr-defined]  # added at import


def accumulate(loss_fn: Callable[..., Any], microbatches: int) -> Callable[..., Any]:
  """Returns fn(params, carry, batch, rng) -> (gradients, terms, carry), computed in microbatches.

  Exact, since the denominators in `loss_fn` are those of the whole batch.
  """
  gradient = jax.grad(loss_fn, has_aux=True)

  def whole(params, carry, batch, rng):
    grads, (terms, carry) = gradient(params, carry, batch, rng)
    return grads, terms, carry

  def parts(params, carry, batch, rng):
    # Row i goes to part i modulo `microbatches`, so that every device keeps rows of its own in every part.
    split = jax.tree.map(lambda a: a.reshape(-1, microbatches, *a.shape[1:]).swapaxes(0, 1), batch)

    def body(sums, part):
      grads, terms, carry = sums
      batch, index = part
      more, (more_terms, carry) = gradient(params, carry, batch, jax.random.fold_in(rng, index))
      return (jax.tree.map(jnp.add, grads, more), add(terms, more_terms), carry), None

    shapes = jax.eval_shape(whole, params, carry, jax.tree.map(lambda a: a[0], split), rng)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes[:2])
    return jax.lax.scan(body, (*zeros, carry), (split, jnp.arange(microbatches)))[0]

  return whole if microbatches == 1 else parts


def train(
  settings: dict[str, Any], workdir: epath.PathLike, profile: Profile | None = None, take_over: bool = False
) -> int:
  """Trains the model of a config into a run folder, and returns the exit code.

  On several hosts, connect them first: `with lmjax.parallel.processes.joined(): train(...)`.

  Args:
    profile: is called with the number of steps taken and the state, before the first step and after every one.
    take_over: of a remote folder: do not wait until the lease of a killed run is stale.

  Raises:
    UserError: a problem that the user can fix; the last complete checkpoint is kept.
  """
  workdir = expand(workdir)
  with run_lock.only_run(workdir, take_over) as may_write:
    clock, shown = Clock(), screen(workdir)
    shown.begin(settings)
    run = experiments.build(settings, workdir)
    experiments.check_or_save_config(settings, run.tokenizer, workdir)
    checkpoints = Checkpoints(workdir, run.checkpoint, may_write=may_write)
    with use_layout(run.layout):
      run = attach_sources(run, workdir, new=not checkpoints.steps())
      return _train(run, settings, workdir, checkpoints, clock, profile or (lambda step, state: None), shown)


def _train(
  run: Experiment, settings: dict[str, Any], workdir: epath.Path, checkpoints: Checkpoints, clock: Clock, profile, shown
) -> int:
  rng = jax.random.key(run.seed)
  start = data_state(rng, run.data.start(run.batch), run.data.version)
  state, abstract, saved = _restore_or_init(run, checkpoints, start, shown)
  rng = jax.random.wrap_key_data(jnp.asarray(saved["rng"]))
  first, collects = int(state.step), int(saved["collects"])
  logged = (line for line in read_metrics(workdir) if line["step"] <= first)
  losses = {line["step"]: loss for line in logged if (loss := run.checkpoint.loss(line)) is not None}
  if first >= run.steps or run.checkpoint.stops(losses):
    key = "steps" if first >= run.steps else "checkpoint.patience"
    shown.say(f"{workdir} is finished: step {first} of {run.steps}; set a larger --config.{key} to train further")
    return 0
  if (old := int(saved["version"])) != run.data.version:
    shown.say(f"data version {run.data.version} starts at step {first}, from its beginning; it was {old} before")
    saved = start
  batches = run.data.train(run.tokenizer, run.batch, run.seed, saved["positions"], run.layout.rows(run.batch))
  with clock("data"):
    batch = next(batches)
  check(batch, _spec(run, batch))

  step = _Step(run, abstract)
  shown.built(run, first)
  with clock("compile"):
    step.compile(state, _first(batch, run), rng)
  with clock("evaluation"):
    context = Context(run.task, run.data, run.tokenizer, run.batch, run.layout, run.models)
    evaluators = {name: evaluator.prepare(context) for name, evaluator in run.evaluators.items()}
    sampler = names.load("lmjax.evals.samples:make")(context, run.log.samples) if run.log.samples else None

  meter = EnergyMeter(run.layout.mesh.local_devices)
  log = Log(workdir, run.log, first, settings)
  shown.started(run, first, step.memory())
  tokens = run.rows * run.data.length
  learning_rate = run.optimizer.learning_rate(run.steps)
  latest: dict[str, Any] = {"train_loss": None, "evaluations": {}, "step": first}
  pending: list[tuple[int, dict]] = []

  def process_metrics() -> None:
    """Logs the oldest pending metrics, one step late, so that the device never waits for the host."""
    at, metrics = pending.pop(0)
    metrics = jax.device_get(metrics)
    if not metrics.pop("counted"):
      raise UserError(
        f"step {at}: {type(run.task).__name__}.loss has other counts than its `counts`, so that its means are wrong: "
        f"{', '.join(f'{key} {float(metrics[key].count):g}' for key in run.task.terms)} in loss; make them the same"
      )
    values = {k: v.value() if isinstance(v, Mean) else float(v) for k, v in metrics.items()}
    if not metrics["finite"]:
      checkpoints.wait()
      good = checkpoints.steps()
      raise DivergedError(
        f"step {at}: the loss is {values['loss']} and the gradient norm {values['gradient_norm']}; stopped. "
        f"{f'The last complete checkpoint is step {good[-1]}' if good else 'There is no checkpoint yet'} in {workdir}. "
        "Try a lower --config.optim.peak_lr or a longer warmup; --debug_nans names the operation"
      )
    latest.update(train_loss=values["loss"], step=at)
    speed = (at - first) * tokens / max(clock.seconds["step"] + clock.seconds["data"], 1e-9)
    shown.step(at, values["loss"], speed)
    if at % run.log.every == 0 or at == run.steps:
      line = {
        "train_loss": values.get("nll", values["loss"]),
        **{key: value for key, value in values.items() if key not in ("loss", "nll", "finite")},
        "learning_rate": float(learning_rate(at - 1)),
        "tokens": at * tokens,
        "tokens_per_second": speed,
        "data_wait": clock.seconds["data"] / max(clock.total(), 1e-9),
        "padding": batches.padding,
        "skipped_records": len(batches.skipped),
      }
      log.write(at, line)

  def evaluate(at: int) -> None:
    with clock("evaluation"):
      params = run.eval_params(state)
      scores = {f"{n}_{k}": v for n, evaluator in evaluators.items() for k, v in evaluator(params).items()}
      samples = sampler(params) if sampler else []
    latest["evaluations"] = scores
    log.write(at, scores)
    log.write(at, {}, samples)
    shown.evaluated(at, scores, samples)
    log.summary(_summary(run, latest, clock, first, batches, meter))
    if (loss := run.checkpoint.loss(scores)) is not None:
      losses[at] = loss
    elif run.checkpoint.patience:
      raise UserError(f"config.checkpoint.metric: no evaluator gives {run.checkpoint.metric!r}, which patience needs")

  def save(at: int) -> None:
    with clock("saving"):
      positions = hosts.gather(batches.positions, batches.streams)
      data = data_state(rng, positions, run.data.version, collects)
      checkpoints.save(at, state, data, losses.get(at))  # of an evaluation at this step, not of an older one

  try:
    at = first
    profile(at, state)
    with hosts.Signals() as signals:
      while True:
        before = at
        with clock("step"):
          for part, extra in _collect(run, state, _shard_batch(batch, run), rng, collects):
            state, metrics = step(state, part, rng)
            at += 1
            pending.append((at, metrics | dict(extra)))
            if len(pending) > 1:
              process_metrics()
            profile(at, state)
        collects += 1
        done = at >= run.steps
        leaving = done or signals.at(at) is not None
        evaluation, saving = (n and at // n > before // n for n in (run.evaluate_every, run.checkpoint.every))
        if leaving or evaluation or saving:
          with clock("step"):
            while pending:
              process_metrics()
        if done or (evaluation and not leaving):
          evaluate(at)
          done = done or run.checkpoint.stops(losses)
          saving = saving or (run.checkpoint.patience > 0 and best_of(losses) == at)
        leaving = leaving or done
        if leaving or saving:
          save(at)
        if leaving:
          break
        with clock("data"):  # after the save, whose data position follows the batch just trained on
          batch = next(batches)
        log.skipped_records(batches.skipped)
    with clock("saving"):
      checkpoints.close()
    if not done:
      log.summary(_summary(run, latest, clock, first, batches, meter))
      shown.ended(run, at, signals.received.name)
      return PREEMPTED if signals.received == signal.SIGTERM else 130
    if at < run.steps:
      shown.say(f"stopped at step {at} of {run.steps}: the best of {run.checkpoint.metric} is step {best_of(losses)}")
    log.summary(_summary(run, latest, clock, first, batches, meter, finished=True))
    shown.ended(run, at)
    return 0
  finally:
    shown.close()
    log.skipped_records(batches.skipped)
    log.close()
    batches.close()


def _collect(run: Experiment, state: TrainState, batch: Batch, rng: jax.Array, number: int) -> Iterable[Collected]:
  """Returns the batches to train on: the given one, or those that the task collects from it."""
  if not run.task.collects:
    return (Collected(batch),)
  rng = jax.random.fold_in(jax.random.fold_in(rng, COLLECT), number)
  return run.task.collect(run.model_params(state), state.frozen.models, state.carry, batch, rng)


class _Step:
  """The step, compiled once for each batch shape; not ahead of time where jax checks every operation."""

  def __init__(self, run: Experiment, abstract: TrainState):
    self._step = jit_step(run, abstract)
    self._compiled: dict[tuple, Any] = {}

  def compile(self, state: TrainState, batch: Batch, rng: jax.Array):
    """Returns the step for these arguments."""
    shapes = tuple(value.shape for value in batch.values())
    if shapes not in self._compiled:
      self._compiled[shapes] = self._step if _eager() else self._step.lower(*state.split(), batch, rng).compile()
    return self._compiled[shapes]

  def __call__(self, state: TrainState, batch: Batch, rng: jax.Array):
    trained, frozen = state.split()
    trained, metrics = self.compile(state, batch, rng)(trained, frozen, batch, rng)
    return trained.replace(frozen=frozen), metrics

  def memory(self):
    """Returns XLA's memory analysis of the first compiled step, or None."""
    return None if _eager() else next(iter(self._compiled.values())).memory_analysis()


def _restore_or_init(
  run: Experiment, checkpoints: Checkpoints, data: DataState, shown: Any
) -> tuple[TrainState, TrainState, DataState]:
  """Returns the state to train, its abstract form, and the data state.

  A run that has checkpoints resumes; else it starts from the weights of `config.start`, or from scratch. A folder that
  belongs to another run was refused before.
  """
  init, abstract = run.init()
  if restored := checkpoints.restore(abstract, data):
    state, data = restored
    return with_frozen(run, state), abstract, data
  names.load("lmjax.optim.fine_tuning:check_settings")(run.optimizer, abstract.params)
  loaded, report = load(run.start, run.named, run.layout)
  if run.start.path:
    shown.say(str(report))
  return init(loaded), abstract, data


def _spec(run: Experiment, batch: Batch) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the spec of the batches that the task reads, at this batch's length."""
  return run.task.reads(run.batch, batch["inputs"].shape[1] if "inputs" in batch else run.data.length)


def _shard_batch(batch: Batch, run: Experiment) -> Batch:
  """Returns the batch on the devices, of which each host contributes its own rows."""
  return run.layout.shard_batch(_spec(run, batch), batch, run.layout.rows(run.batch))


def _first(batch: Batch, run: Experiment) -> Batch:
  """Returns what the first update learns from; its shapes, where the task collects it from the batch."""
  collected = run.layout.abstract_batch(run.task.spec(run.batch, run.data.length))
  return collected if run.task.collects else _shard_batch(batch, run)


def _summary(
  run: Experiment, latest: dict, clock: Clock, first: int, batches, meter: EnergyMeter, finished: bool = False
) -> dict[str, Any]:
  """Returns the contents of summary.json."""
  tokens, steps = run.rows * run.data.length, latest["step"]
  busy = clock.seconds["step"] + clock.seconds["data"]
  speed = (steps - first) * tokens / busy if busy and steps > first else None
  chip, utilisation = chip_of(run.layout.mesh.devices.flat[0]), None
  if chip and speed:
    flops = train_step_flops(run.task, run.batch, run.data.length, run.models)
    utilisation = flops.executed(run.task.model.causal) / tokens * speed / chip.flops / run.layout.mesh.size
  used = meter.used()
  return {
    "parameters": run.parameters,
    "steps": steps,
    "tokens": steps * tokens,
    "train_loss": latest["train_loss"],
    **dict.fromkeys(("validation_loss", "validation_bits_per_byte")),
    **latest["evaluations"],
    "seconds": clock.total(),
    "tokens_per_second": speed,
    "time": {name: round(seconds, 3) for name, seconds in clock.seconds.items()},
    "flops_utilisation": utilisation if utilisation is not None else "not known for this device",
    "flops_formula": FORMULA,
    "energy_kwh": used.kwh,
    "energy_method": used.method,
    "skipped_records": len(batches.skipped),
    "devices": f"{run.layout.mesh.size} x {run.layout.mesh.devices.flat[0].device_kind}",
    "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds") if finished else None,
  }
