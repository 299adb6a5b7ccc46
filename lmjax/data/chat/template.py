"""Chat templates: Jinja2 programs that turn the messages of a dialogue into one string."""

import atexit
import contextlib
import dataclasses
import datetime
import functools
import json
import os
import pathlib
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

WAIT = 60.0  # seconds until the process that renders is given up; the limit on its own processor time is shorter


class ChatError(ValueError):
  """What is wrong with a dialogue or with a template, as the end of a sentence that starts with its name."""


@dataclasses.dataclass(frozen=True)
class Message:
  """One turn of a dialogue; role: usually system, user or assistant; image: whether one is before the text."""

  role: str
  content: str
  image: bool = False


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
  """A chat template with its variables, such as `bos_token`.

  now: the time that a template may write, in ISO format; empty for the time of rendering. A run has a fixed one, so
  that its tokens do not depend on the day.
  """

  source: str
  variables: dict[str, str] = dataclasses.field(default_factory=dict)
  now: str = ""

  def render(self, messages: Sequence[Message], prompt: bool = False) -> str:
    """Returns the string of a dialogue; prompt: whether the start of an answer follows.

    Raises:
      ChatError: the template is malformed, refuses the messages, or exceeds the limits on time, memory and size.
    """
    request = {"messages": [dataclasses.asdict(message) for message in messages], "add_generation_prompt": prompt}
    now = self.now or datetime.datetime.now().isoformat()
    line = {"template": self.source, "variables": self.variables | request, "now": now}
    answer = _process_of(os.getpid()).ask(json.dumps(line))
    if "error" in answer:
      raise ChatError(f"the chat template {answer['error']}")
    return str(answer["text"])


class _Process:
  """The process that renders templates: see worker.py; a new one is started where it has been ended."""

  def __init__(self) -> None:
    self.lock = threading.Lock()
    self.process: Any = None

  def ask(self, line: str) -> dict[str, Any]:
    """Returns the answer of the process to a line; an error where it ends or takes too long."""
    with self.lock:
      if self.process is None:
        command = [sys.executable, "-I", str(pathlib.Path(__file__).with_name("worker.py"))]
        pipes: dict[str, Any] = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.process = subprocess.Popen(command, bufsize=-1, **pipes)
      timer = threading.Timer(WAIT, self.process.kill)
      timer.start()
      try:
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer
      except (OSError, ValueError):  # it has ended
        self.close()
        return {"error": "does not end, or needs too much memory"}
      finally:
        timer.cancel()

  def close(self) -> None:
    """Ends the process."""
    process, self.process = self.process, None
    if process is not None:
      process.kill()
      with contextlib.suppress(OSError):  # what was written and not sent
        process.stdin.close()
      process.stdout.close()
      process.wait()


@functools.cache
def _process_of(pid: int) -> _Process:  # a process that was forked has one of its own
  process = _Process()
  atexit.register(process.close)
  return process
