"""A headless Chromium that a test asks through its DevTools protocol, over two pipes."""

import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from typing import Any

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
LONGEST = 90.0  # seconds


class Browser:
  """One page; `events` is all that the browser reported: requests, console messages, errors."""

  def __init__(self, read: int, write: int):
    self._read, self._write, self._rest = read, write, b""
    self._numbers, self._session = itertools.count(1), None
    self.events: list[dict[str, Any]] = []
    target = self.call("Target.createTarget", url="about:blank")["targetId"]
    self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    for domain in ("Network", "Runtime", "Log", "Page"):
      self.call(f"{domain}.enable")

  def call(self, method: str, **params: Any) -> dict[str, Any]:
    """Returns the result of a method of the protocol."""
    number = next(self._numbers)
    message = {"id": number, "method": method, "params": params}
    message |= {"sessionId": self._session} if self._session else {}
    os.write(self._write, json.dumps(message).encode() + b"\0")
    while (answer := self._answer()).get("id") != number:
      self.events.append(answer)
    assert "error" not in answer, answer
    result: dict[str, Any] = answer["result"]
    return result

  def evaluate(self, script: str) -> Any:
    """Returns the value of an expression, of a promise when it is kept."""
    result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
    assert "exceptionDetails" not in result, result
    return result["result"].get("value")

  def wait(self, condition: str) -> None:
    """Waits until an expression is true."""
    end = time.monotonic() + LONGEST
    while not self.evaluate(condition):
      assert time.monotonic() < end, f"{condition} stays false: {self.evaluate('document.body.innerText')}"
      time.sleep(0.1)

  def errors(self) -> list[Any]:
    """Returns what was written to the console, and what no script caught."""
    kinds = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
    return [event["params"] for event in self.events if event.get("method") in kinds]

  def requests(self) -> list[str]:
    """Returns the addresses that the page asked for."""
    sent = [event["params"] for event in self.events if event.get("method") == "Network.requestWillBeSent"]
    return [params["request"]["url"] for params in sent]

  def _answer(self) -> dict[str, Any]:
    while b"\0" not in self._rest:
      assert select.select([self._read], [], [], LONGEST)[0], "the browser does not answer"
      self._rest += os.read(self._read, 2**20)
    text, _, self._rest = self._rest.partition(b"\0")
    answer: dict[str, Any] = json.loads(text)
    return answer


@contextlib.contextmanager
def browser(folder: Any) -> Iterator[Browser]:
  """Yields a browser whose profile is in a folder."""
  to_browser, write = os.pipe()
  read, from_browser = os.pipe()

  # The protocol's descriptors are 3 and 4, which a shell gives the browser: a process with JAX's threads must not fork.
  pipes = f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}'
  command = ["bash", "-c", pipes, BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
             "--disable-background-networking", "--remote-debugging-pipe", f"--user-data-dir={folder}"]  # fmt: skip
  quiet: dict[str, Any] = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  process = subprocess.Popen(command, pass_fds=(to_browser, from_browser), **quiet)
  os.close(to_browser)
  os.close(from_browser)
  try:
    yield Browser(read, write)
  finally:
    os.close(write)
    process.kill()
    process.wait()
    os.close(read)
