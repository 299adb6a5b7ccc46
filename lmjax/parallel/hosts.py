"""What the hosts of a run do together: they gather values, wait for each other, and stop at the same step.

`processes` connects them.
"""

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from lmjax.utils.errors import UserError, reason


def gather(values: np.ndarray, own: list[int]) -> np.ndarray:
  """Returns `values` with each entry from the process that owns it; every process must call this.

  Args:
    values: an array whose axis 0 is divided between the processes.
    own: the indices along axis 0 that this process owns, as many as every other one.
  """
  if jax.process_count() == 1:
    return values
  gathered = values.copy()
  for own_values, indices in zip(*multihost_utils.process_allgather((values[own], np.array(own))), strict=True):
    gathered[indices] = own_values
  return gathered


def together(action: Callable[[], Any], only_first: bool = False) -> None:
  """Runs an action on every process, or on the first one only; every process must call this, and all fail alike.

  Raises:
    UserError: the action failed on some process; with a single one, whatever it raised.
  """
  message = ""
  try:
    if not only_first or jax.process_index() == 0:
      action()
  except Exception as error:
    if jax.process_count() == 1:
      raise
    message = str(error) if isinstance(error, UserError) else reason(error)
  if jax.process_count() > 1:
    messages = multihost_utils.process_allgather(np.frombuffer(message.encode()[:2000].ljust(2000), np.uint8))
    for text in (row.tobytes().decode(errors="ignore").strip() for row in np.asarray(messages)):
      if text:
        raise UserError(text)


def wait_for_all(name: str) -> None:
  """Returns when every process has called this with the same name."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


class Signals:
  """Records the first SIGTERM or SIGINT, so that the loop can save and exit; a second one ends the process at once.

  With several processes jax handles SIGTERM: it makes all of them stop at the same step, whichever received it.
  """

  def __init__(self):
    self.received: signal.Signals | None = None

  def __enter__(self) -> "Signals":
    self._before = {}
    if threading.current_thread() is threading.main_thread():
      own = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else (signal.SIGINT,)
      self._before = {s: signal.signal(s, self._catch) for s in own}
    return self

  def at(self, step: int) -> signal.Signals | None:
    """Returns the signal that ends the run after this step, or None; the same on every process."""
    if jax.process_count() > 1 and self.received is None and multihost_utils.reached_preemption_sync_point(step):
      self.received = signal.SIGTERM
    return self.received

  def _catch(self, number: int, frame) -> None:
    signal.signal(number, self._before[number])
    os.write(2, b"\nlmjax: stopping after this step, and saving it; once more ends the run at once\n")
    if jax.process_count() > 1:
      os.kill(os.getpid(), signal.SIGTERM)  # jax forwards it to every process
    else:
      self.received = signal.Signals(number)

  def __exit__(self, *error) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)
