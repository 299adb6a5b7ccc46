"""A conversation as a page for a browser on the same machine: one file of HTML, and a server of the standard library.

The server listens on 127.0.0.1 alone, and answers only a browser that asks for it under that name: a page of another
site, or another name for this address, gets nothing. The page asks no other server for anything.
"""

import base64
import binascii
import contextlib
import json
import pathlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from lmjax.inference import images
from lmjax.inference.chat import Chat
from lmjax.inference.chat_commands import run_command
from lmjax.inference.next_token import NextToken
from lmjax.parallel.sharding import use_layout
from lmjax.utils import files
from lmjax.utils.errors import UserError, reason
from lmjax.utils.fields import Fields

HOST, HOSTS = "127.0.0.1", ("127.0.0.1", "localhost")
COMMANDS = ("/reset", "/system", "/undo", "/temperature", "/image")  # of which /image only removes one
LONGEST = 32_000_000  # bytes of a request
TOP = 10  # tokens whose probabilities are shown
POLICY = (
  "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
)
POLICY += "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def serve(chat: Chat, port: int) -> None:
  """Serves the page of a conversation until Ctrl-C; port: 0 is any that is free.

  Raises:
    UserError: the port is taken.
  """
  try:
    server = ChatServer(chat, port)
  except OSError as error:
    raise UserError(f"chat: port {port} cannot be used: {reason(error)}; give another one with --port") from error
  print(f"lmjax: http://{HOST}:{server.server_port} until Ctrl-C", flush=True)
  with server, contextlib.suppress(KeyboardInterrupt):
    server.serve_forever()
  server.stop.set()
  with server.turn:  # an answer that is being written ends at its next token
    print()


class ChatServer(ThreadingHTTPServer):
  """The server of one conversation, which all open pages share; `stop` ends the answer that is being written."""

  daemon_threads = True

  def __init__(self, chat: Chat, port: int):
    self.chat, self.turn, self.stop = chat, threading.Lock(), threading.Event()
    self.next_token = NextToken(chat.loaded.task.model, chat.loaded.length)
    self._seen: tuple[Any, np.ndarray] | None = None
    super().__init__((HOST, port), Handler)

  @contextlib.contextmanager
  def alone(self) -> Iterator[Chat]:
    """Yields the conversation to one request at a time; raises UserError while another one has it."""
    if not self.turn.acquire(blocking=False):
      raise UserError("the model is busy; stop its answer first")
    try:
      with use_layout(self.chat.loaded.layout):  # which each thread has to be given
        yield self.chat
    finally:
      self.turn.release()

  def state(self) -> dict[str, Any]:
    """Returns what the page shows of the conversation."""
    chat = self.chat
    messages = [{"role": message.role, "content": message.content} for message in chat.messages]
    return {
      "images": images.reads_images(chat.loaded),
      "image": chat.image is not None,
      "messages": messages,
      "temperature": chat.sampling.temperature,
      "model": str(type(chat.loaded.task.model).__name__),
    }

  def look(self, at: int | None, layer: int, head: int | None) -> dict[str, Any]:
    """Returns the tokens of the last answer and of what was read before it, and what the model saw at one of them.

    Args:
      at: the position of a token of the answer, of which are returned: the likeliest tokens in its place, and the
        attention that the model paid to those before it. None is the first one.
      layer, head: of the attention; without a head, the mean of all.

    Raises:
      UserError: there is no answer, or no such position, layer or head.
    """
    chat, tokenizer = self.chat, self.chat.loaded.tokenizer
    if len(chat.ids) <= chat.prompt:
      raise UserError("there is no answer to look into; write a message first")
    at = chat.prompt if at is None else at
    if not chat.prompt <= at < len(chat.ids):
      raise UserError(f"position {at} is not one of the answer's, {chat.prompt} to {len(chat.ids) - 1}")
    params, batch = chat.loaded.params["model"], self.next_token.row(chat.ids[:at], chat.image)
    p_V = self.next_token.probabilities(params, batch, at - 1)
    best = np.argsort(-p_V)[:TOP].tolist()
    rows = [*best, *([] if chat.ids[at] in best else [chat.ids[at]])]
    view: dict[str, Any] = {
      "tokens": [label(tokenizer, i) for i in chat.ids], "prompt": chat.prompt, "at": at,
      "next": [{"token": label(tokenizer, i), "p": float(p_V[i]), "drawn": i == chat.ids[at]} for i in rows],
    }  # fmt: skip
    try:
      weights_NxHxL = self._attention(params, batch, at)
    except UserError as error:
      return view | {"note": str(error)}
    depth, heads, _ = weights_NxHxL.shape
    if not layer < depth or (head is not None and not head < heads):
      raise UserError(f"there are {depth} layers and {heads} heads, the first is 0")
    weights_L = weights_NxHxL[layer].mean(0) if head is None else weights_NxHxL[layer, head]
    return view | {"layers": depth, "heads": heads, "attention": [round(float(w), 6) for w in weights_L[:at]]}

  def _attention(self, params: Any, batch: Any, at: int) -> np.ndarray:
    """Returns the attention of all layers and heads, which is kept for the next layer or head that is asked for."""
    key = (tuple(self.chat.ids), at)
    if self._seen is None or self._seen[0] != key:
      self._seen = key, self.next_token.attention(params, batch, at - 1)
    return self._seen[1]


def label(tokenizer: Any, number: int) -> str:
  """Returns the text of one token; its name where it is not text."""
  text: str = tokenizer.fast.decode([number], skip_special_tokens=False)
  return text if text and "\ufffd" not in text else tokenizer.fast.id_to_token(number) or str(number)


class Handler(BaseHTTPRequestHandler):
  """Answers a request of the page."""

  server: ChatServer
  timeout = 60  # seconds until a connection on which nothing comes is closed

  def do_GET(self) -> None:
    """Sends the page, or the state of the conversation."""
    if not self._is_from_here():
      self.send_error(403)
    elif self.path == "/":
      self._start("text/html; charset=utf-8")
      self.wfile.write(files.read_text(pathlib.Path(__file__).with_name("chat_page.html")).encode())
    elif self.path == "/state":
      self._start("application/json")
      self._line(self.server.state())
    else:
      self.send_error(404)

  def do_POST(self) -> None:
    """Sends lines of JSON: the answer to a message while it is written, or the one line of another request."""
    actions = {
      "/message": self._message,
      "/command": self._command,
      "/look": self._look,
      "/stop": self._stop,
      "/image": self._image,
      "/load": self._load,
    }
    kind = self.headers.get("Content-Type", "")
    if not self._is_from_here() or kind != "application/json":  # which no other site may send without asking
      return self.send_error(403)
    if self.path not in actions:
      return self.send_error(404)
    with contextlib.suppress(ConnectionError):  # the page was closed
      self._start("application/x-ndjson")
      try:
        actions[self.path](self._request())
      except UserError as error:
        self._line({"error": str(error)})

  def log_message(self, format: str, *args: Any) -> None:
    """Prints nothing."""

  def _is_from_here(self) -> bool:
    host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
    return host.rpartition(":")[0] in HOSTS and origin in (None, f"http://{host}")

  def _request(self) -> Fields:
    size = self.headers.get("Content-Length", "")
    if not size.isdecimal() or int(size) > LONGEST:
      raise UserError(f"a request has at most {LONGEST:,} bytes")
    try:
      return Fields(files.parse_json(self.rfile.read(int(size))), "", "request ")
    except ValueError as error:
      raise UserError(f"the request {error}") from error

  def _start(self, kind: str) -> None:
    self.send_response(200)
    headers = {"Content-Type": kind, "Content-Security-Policy": POLICY, "Cache-Control": "no-store"}
    for name, value in (headers | {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}).items():
      self.send_header(name, value)
    self.end_headers()

  def _line(self, value: dict[str, Any]) -> None:
    self.wfile.write(json.dumps(value).encode() + b"\n")

  def _message(self, request: Fields) -> None:
    text = request.text("text").strip()
    if not text:
      raise UserError("the message is empty")
    with self.server.alone() as chat:
      self.server.stop.clear()
      ids, dropped = chat.fit(text)
      self._line({"dropped": dropped})
      parts = chat.answer(ids, text)
      try:
        for part in parts:
          self._line({"part": part})  # an empty one, too: it fails where the page was closed
          if self.server.stop.is_set():
            break
      finally:
        parts.close()
      self._line({"state": self.server.state(), "stopped": self.server.stop.is_set()})

  def _command(self, request: Fields) -> None:
    with self.server.alone() as chat:
      run_command(chat, request.text("text"), COMMANDS)
      chat.ids, chat.prompt = [], 0
      self._line({"state": self.server.state()})

  def _image(self, request: Fields) -> None:
    with self.server.alone() as chat:
      try:
        data = base64.b64decode(request.text("data"), validate=True)
      except (ValueError, binascii.Error) as error:
        raise UserError("the image was not sent as base64") from error
      chat.show(request.text("name") or "the image", data)
      chat.ids, chat.prompt = [], 0  # which were written about another image
      self._line({"state": self.server.state()})

  def _load(self, request: Fields) -> None:
    with self.server.alone() as chat:
      chat.load(request.text("name") or "the file", request.text("text"))
      chat.ids, chat.prompt = [], 0
      self._line({"state": self.server.state()})

  def _look(self, request: Fields) -> None:
    with self.server.alone():
      at, head = request.integer("at", None), request.integer("head", None)
      self._line(self.server.look(at, request.integer("layer", 0), head))

  def _stop(self, request: Fields) -> None:
    self.server.stop.set()
    self._line({})
