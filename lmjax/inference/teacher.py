"""What a teacher predicts of the rows that a run will train on, written to disk."""

from typing import Any

import jax
import numpy as np
from etils import epath

from lmjax import experiment as experiments
from lmjax.data.batch import check
from lmjax.data.cached_scores import Writer
from lmjax.inference.progress import ProgressBar
from lmjax.parallel.sharding import use_layout
from lmjax.storage.start import load_frozen
from lmjax.tasks.distill import Distill
from lmjax.tasks.replay import predictions
from lmjax.utils import files
from lmjax.utils.errors import UserError


def write_predictions(settings: dict[str, Any], output: epath.PathLike, top: int) -> int:
  """Writes the most probable words or classes of every row of a config's batches; returns how many batches are there.

  A folder that was interrupted is continued.

  Args:
    settings: of a config whose task is `Distill`; as many batches as it has steps.
    top: words or classes to keep; those of the model where it has fewer.

  Raises:
    UserError: the config has no teacher, or the folder holds other predictions.
  """
  if jax.process_count() > 1:
    raise UserError("teacher: predictions are written by one host")
  run = experiments.build(settings)
  distill = run.task
  if not isinstance(distill, Distill):
    raise UserError(f"teacher: the task is {type(distill).__name__}; give a config whose task is Distill")
  keys = distill.reads(run.batch, run.data.length)
  with use_layout(run.layout):
    teacher = load_frozen(distill.teacher, run.layout)
    classes = (
      teacher.task.model.config.vocabulary
      if "row_weights" not in keys
      else len(getattr(distill.task, "labels", ())) or 1
    )
    top = min(top, classes)
    predict = jax.jit(lambda teacher, batch: predictions(distill, teacher, batch, top))
    about = {"keys": sorted(keys), "top": top, "temperature": float(distill.temperature), "classes": classes}
    writer = Writer(output, about | {"teacher": files.absolute(distill.teacher.path)})
    batches = run.data.train(run.tokenizer, run.batch, run.seed)
    try:
      with ProgressBar("teacher", run.steps, writer.done, "batches") as progress:
        for number in range(run.steps):
          batch = next(batches)
          if number < writer.done:
            continue
          check(batch, distill.reads(run.batch, batch["inputs"].shape[1]))
          read = {key: batch[key] for key in keys}
          placed = jax.device_put(read, run.layout.batch(read))
          writer.add(read, *map(np.asarray, predict(teacher, placed)))
          progress.update(number + 1)
    finally:
      batches.close()
      writer.flush()
  return writer.done
