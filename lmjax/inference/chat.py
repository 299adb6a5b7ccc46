"""Conversations with a loaded model: the history, what of it fits the window, and answers while they are written."""

import dataclasses
import functools
import importlib
import json
import sys
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
from etils import epath

from lmjax.data.chat.format import ASSISTANT
from lmjax.data.chat.prompts import ChatPrompts
from lmjax.data.chat.template import ChatError, Message
from lmjax.data.sources.chat_records import read_messages
from lmjax.decode.logits import Sampling
from lmjax.decode.sample import Sampler, pad_prompts
from lmjax.inference.stream_text import StreamedText
from lmjax.storage.base import LoadedModel
from lmjax.tasks.base import Base
from lmjax.tasks.encode import Encode
from lmjax.utils import files
from lmjax.utils.errors import UserError
from lmjax.utils.pytree import Tree


@dataclasses.dataclass
class Chat:
  """A conversation with a decoder; `messages` is its history, which may begin with a system message.

  template: of the messages (see `ChatFormat`); by default that of the model's tokenizer. max_new_tokens: of an answer,
  at most half of the window. seed: of the first answer; each answer has the next one. ids: of the last answer and of
  all that was read before it, of which the first `prompt` were read. image: the patches [I, C] of the
  image that the model sees, or None.

  Raises:
    UserError: the model is not a decoder that writes text, or its tokenizer has no chat template and none is given.
  """

  loaded: LoadedModel
  template: str = ""
  sampling: Sampling = Sampling()
  max_new_tokens: int = 512
  seed: int = 0
  messages: list[Message] = dataclasses.field(default_factory=list)
  ids: list[int] = dataclasses.field(default_factory=list)
  prompt: int = 0
  image: np.ndarray | None = None

  def __post_init__(self):
    task, tokenizer = self.loaded.task, self.loaded.tokenizer
    if task.model.kind != "decoder" or isinstance(task, Encode) or type(task).scored is Base.scored:
      raise UserError("chat: this model writes no text after a prompt; use a decoder that predicts tokens")
    if not self.template and not getattr(tokenizer, "chat_template", None):
      raise UserError(
        "chat: the model has no chat template, so it was not trained on dialogues; to talk to it anyway, add "
        "--template chatml or --template plain"
      )
    self._format = ChatPrompts(tokenizer, self.template)
    self.max_new_tokens = min(self.max_new_tokens, self.loaded.length // 2)

  @functools.cached_property
  def _params(self) -> Tree:
    return self._sampler.prepare(self.loaded.params["model"])

  @property
  def _images(self) -> Any:
    return importlib.import_module("lmjax.inference.images")  # what reads them is not needed for text

  @property
  def _sampler(self) -> Sampler:
    sampling = dataclasses.replace(self.sampling, excluded=getattr(self.loaded.tokenizer, "excluded", ()))
    return Sampler(self.loaded.task.model, self.loaded.length, sampling, self._format.ends)

  def fit(self, text: str) -> tuple[list[int], int]:
    """Returns the ids that an answer to a message continues, and how many messages of the history were dropped.

    The oldest turns are dropped from the history until the rest fits the window; the system message stays.

    Raises:
      UserError: the message alone does not fit, or the template refuses the conversation.
    """
    dropped, system = 0, bool(self.messages[:1]) and self.messages[0].role == "system"
    while True:
      try:
        messages = [*self.messages, Message("user", text)]
        first = next(i for i, message in enumerate(messages) if message.role == "user")
        messages[first] = dataclasses.replace(messages[first], image=self.image is not None)
        ids = self._format.prompt(messages)
        ids = ids if self.image is None else self._images.placed(self.loaded, ids)
      except ChatError as error:
        raise UserError(f"chat: {error}") from error
      if len(ids) + self.max_new_tokens <= self.loaded.length:
        return ids, dropped
      users = (i for i, m in enumerate(self.messages) if i > system and m.role == "user")
      after = next(users, len(self.messages))
      if after <= system:
        raise UserError(
          f"chat: the message and what precedes it are {len(ids):,} tokens, and the model reads "
          f"{self.loaded.length - self.max_new_tokens:,} before an answer of {self.max_new_tokens:,}"
        )
      dropped += after - system
      del self.messages[int(system) : after]

  def answer(self, ids: list[int], text: str) -> Generator[str, None, None]:
    """Yields the parts of the answer to a message, while it is written; both are then part of the history.

    If the caller stops, what was written until then is the answer.

    Args:
      ids, text: what `fit` returned, and the message.
    """
    written = StreamedText(self.loaded.tokenizer, ids, [])
    self.ids, self.prompt = list(ids), len(ids)
    padded, image = pad_prompts([ids], self.max_new_tokens, self.loaded.length), self.image
    image = None if image is None else image[None]
    seeds = np.array([self.seed], np.uint32)
    try:
      for drawn in self._sampler.continuations(self._params, *padded, self.max_new_tokens, seeds, 1, image):
        self.ids += [int(i) for i in drawn[0] if i >= 0]
        yield written.add(int(i) for i in drawn[0] if int(i) not in self._format.ends)
      yield written.finish()
    finally:
      self.seed += 1
      if written.text:
        self.messages += [Message("user", text), Message(ASSISTANT, written.text)]

  def show(self, path: epath.PathLike, data: bytes | None = None) -> None:
    """Shows the model an image, instead of the one before; without a path, none.

    Args:
      data: the content of the file, where it is not read from the path.

    Raises:
      UserError: the model reads no images, or the file is not one.
    """
    read = files.read_bytes if data is None else lambda path: data
    images = self._images
    if path and not images.reads_images(self.loaded):  # before the file is read
      raise UserError("chat: an image needs a model that reads images, and this one reads text alone")
    self.image = images.patches(self.loaded, read(path), path) if path else None

  def reset(self) -> None:
    """Removes the image and all messages but that of the system."""
    self.image = None
    self.messages = [message for message in self.messages[:1] if message.role == "system"]

  def set_system(self, text: str) -> None:
    """Replaces the system message; an empty one removes it."""
    rest = [message for message in self.messages if message.role != "system"]
    self.messages = [*([Message("system", text)] if text else []), *rest]

  def undo(self) -> None:
    """Removes the last message of the user and what follows it."""
    last = max((i for i, message in enumerate(self.messages) if message.role == "user"), default=len(self.messages))
    del self.messages[last:]

  def save(self, path: epath.PathLike) -> None:
    """Writes the history as a line of JSON, which `JsonDialogues` reads."""
    messages = [{"role": message.role, "content": message.content} for message in self.messages]
    files.write(path, json.dumps({"messages": messages}, ensure_ascii=False) + "\n")

  def load(self, path: epath.PathLike, text: str | None = None) -> None:
    """Replaces the history by that of a file, which has no image.

    Args:
      text: the content of the file, where it is not read from the path.

    Raises:
      UserError: the file cannot be read, or is not a history.
    """
    try:
      record = files.parse_json(files.read_bytes(path) if text is None else text)
      self.messages, self.image = list(read_messages(record.get("messages"), "messages")), None
    except ValueError as error:
      raise UserError(f"{path} {error}") from error


def typed_messages() -> Iterator[str]:
  """Yields what a person types, or the lines of a pipe; a line that ends with a backslash continues in the next one.

  Raises:
    UserError: standard input is not UTF-8.
  """
  interactive, lines = sys.stdin.isatty(), []
  while True:
    if interactive:
      print("... " if lines else "> ", end="", flush=True)
    try:
      line = sys.stdin.readline()
    except KeyboardInterrupt:  # drops what was typed
      print()
      lines = []
      continue
    except UnicodeDecodeError as error:
      raise UserError("chat: standard input is not UTF-8") from error
    lines.append(line.rstrip("\r\n"))
    if lines[-1].endswith("\\") and line:
      lines[-1] = lines[-1][:-1]
      continue
    text, lines = "\n".join(lines).strip(), []
    if text:
      yield text
    if not line:
      return
