"""Evaluation of a loaded model, with the evaluators of its own run or with those of a config."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from etils import epath

from lmjax import config as configs
from lmjax.data.pipeline import Reader
from lmjax.evals.base import Context, Evaluator
from lmjax.parallel.sharding import use_layout
from lmjax.storage.base import LoadedModel
from lmjax.tasks.base import Base, Task
from lmjax.utils.errors import UserError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """What to evaluate: a task on the validation data of `data`, in batches of `batch` rows."""

  task: Task
  data: Reader
  evaluators: dict[str, Evaluator]
  batch: int


def make_evaluation(
  loaded: LoadedModel, path: epath.PathLike, config: str | None, overrides: dict[str, str]
) -> Evaluation:
  """Returns the evaluation of a run folder, or of another model with the task, data and evaluators of a config.

  Args:
    config: the path of a config, for a model that is not a run folder; its task is applied to the model.
    overrides: changes of that config; those of a run were applied when it was loaded.

  Raises:
    UserError: the config is missing, not needed, or its task does not fit the model.
  """
  if loaded.run is not None:
    if config:
      raise UserError(
        f"evaluate: {path} is a run with a config of its own: leave out --config, or use --config.key=value"
      )
    return Evaluation(loaded.task, loaded.run.data, loaded.run.evaluators, loaded.run.batch)
  if not config:
    raise UserError(
      f"evaluate: {path} is not a run folder and has no evaluators; give a config that has, such as "
      "--config configs/text.py:files='val/*.txt'"
    )
  settings = configs.load(config, overrides)
  data = configs.build(settings["data"], "data", None, Reader).for_model(loaded.task.model)
  task = configs.build(settings["task"], "task", None, Base, model=loaded.task.model, **data.shared(loaded.tokenizer))
  if type(task) is not type(loaded.task):
    raise UserError(
      f"evaluate: the task of {config} is {type(task).__name__}, but {path} is a model for {type(loaded.task).__name__}"
    )
  evaluators: dict[str, Any] = {
    name: configs.build(spec, f"evals.{name}", None, Evaluator)
    for name, spec in settings["evals"].items()
    if name != "every"
  }
  return Evaluation(task, data, evaluators, settings["batch"])


def evaluate(loaded: LoadedModel, evaluation: Evaluation, only: Sequence[str] = ()) -> dict[str, float]:
  """Returns {evaluator_metric: value}, and the step of the parameters as `step`.

  Args:
    only: the names of the evaluators to run; empty for all.

  Raises:
    UserError: `only` names an evaluator that does not exist.
  """
  evaluators = evaluation.evaluators
  for name in only:
    if name not in evaluators:
      raise UserError(f"evaluate: no evaluator {name!r} in config.evals{did_you_mean(name, evaluators)}")
  metrics: dict[str, float] = {"step": loaded.step}
  models = loaded.run.models if loaded.run else {}
  context = Context(evaluation.task, evaluation.data, loaded.tokenizer, evaluation.batch, loaded.layout, models)
  with use_layout(loaded.layout):
    for name, evaluator in evaluators.items():
      if name in (only or evaluators):
        measure = evaluator.prepare(context)
        metrics |= {f"{name}_{key}": value for key, value in measure(loaded.params).items()}
  return metrics
