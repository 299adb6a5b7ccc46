"""TensorBoard and Weights & Biases; imported for the runs that write for them."""

import contextlib
import time
from typing import Any

from etils import epath

from lmjax.utils import files
from lmjax.utils.errors import UserError

FLUSH_SECONDS = 30  # between writes of the TensorBoard file


class TensorBoard:
  """Scalars for TensorBoard. tensorboardX writes them in a thread, for which a run waits forever at a full disk."""

  def __init__(self, folder: epath.Path, first: int):
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.summary import scalar

    files.make_folder(folder)
    self._folder, self._event, self._scalar = folder, Event, scalar
    self._flushed = time.monotonic()
    with files.writing(folder):
      self._writer = EventsWriter(str(folder / "events"))
      # Hides what an interrupted run logged after the step at which this one starts.
      self._writer.write_event(Event(step=first + 1, session_log=SessionLog(status=SessionLog.START)))

  def write(self, step: int, metrics: dict[str, float]) -> None:
    """Writes the metrics of a step, and from time to time to the disk."""
    with files.writing(self._folder):
      for key, value in tags(metrics).items():
        self._writer.write_event(self._event(wall_time=time.time(), step=step, summary=self._scalar(key, value)))
      if time.monotonic() > self._flushed + FLUSH_SECONDS:
        self._writer.flush()
        self._flushed = time.monotonic()

  def text(self, step: int, samples: list[str]) -> None:
    """Writes generated samples."""
    from tensorboardX.summary import text

    with files.writing(self._folder):
      for number, sample in enumerate(samples):
        summary = text(f"samples/{number}", sample)
        self._writer.write_event(self._event(wall_time=time.time(), step=step, summary=summary))

  def close(self) -> None:
    """Closes the file; what a full disk keeps of it is in metrics.jsonl."""
    with contextlib.suppress(OSError):
      self._writer.close()


def tags(metrics: dict[str, float]) -> dict[str, float]:
  """Returns metrics under grouped names, `validation/loss`, `train/loss`; those of a step are all in `train`."""
  if "train_loss" in metrics:
    return {f"train/{key.removeprefix('train_')}": value for key, value in metrics.items()}
  return {key.replace("_", "/", 1): value for key, value in metrics.items()}


def start_wandb(project: str, workdir: epath.Path, config: dict[str, Any]) -> Any:
  """Returns the run of a project, which is resumed where it has the name of the folder."""
  try:
    import wandb
  except ImportError as error:
    raise UserError("config.log.wandb: wandb is not installed: pip install 'lmjax[wandb]'") from error
  return wandb.init(project=project, dir=str(workdir), config=config, id=workdir.name, resume="allow")
