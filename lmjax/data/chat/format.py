"""Dialogues as token ids: what the template writes are special tokens, what people write never is.

The string that the template makes of a dialogue is taken apart: the template renders placeholders in place of the
messages, and so it is known which part of the string is whose. A special token that the template writes is replaced by
a name that nobody can write, and a copy of the tokenizer has its special tokens under these names. So the ids are those
of the whole string, and a special token in a message is the characters of its name.
"""

import functools
import json
import pathlib
import re
import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from lmjax.data.chat.template import ChatError, ChatTemplate, Message
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.data.tokenizers.bpe import BPE
from lmjax.utils.errors import UserError
from lmjax.utils.files import parse_json, read_text

TEMPLATES = ("chatml", "plain")
CONTROL = ("<|im_start|>", "<|im_end|>")  # of ChatML
ASSISTANT = "assistant"
STRIPS = (str, str.strip, str.rstrip, str.lstrip)  # what templates do to the text of a message


class ChatIds(NamedTuple):
  """A dialogue as ids [T], and which of them a model is to write [T]: the assistant's, its end of turn included."""

  ids: np.ndarray
  answer: np.ndarray


class _Skeleton(NamedTuple):
  """What a template writes around messages: literals[i] before messages[i] of the dialogue, the last one at the end."""

  literals: tuple[str, ...]
  messages: tuple[int, ...]


class ChatFormat:
  """The chat format of a tokenizer.

  template: a Jinja template, `chatml`, `plain`, or a path to a template; by default that of the tokenizer's folder,
  else ChatML. now: see `ChatTemplate`.

  Raises:
    UserError: the tokenizer has no special tokens that a template could write, or lacks those of ChatML.
  """

  def __init__(self, tokenizer: Tokenizer, template: str = "", now: str = ""):
    if not isinstance(tokenizer, BPE):
      raise UserError(f"chat: {type(tokenizer).__name__} tokenizers have no special tokens; use one of the kind `bpe`")
    self.tokenizer = tokenizer
    source = read_template(template) or getattr(tokenizer, "chat_template", None) or read_template("chatml")
    roles = {"bos": tokenizer.start, "eos": tokenizer.end, **tokenizer.roles}
    named = {f"{role}_token": "" if i is None else tokenizer.fast.id_to_token(i) or "" for role, i in roles.items()}
    self.template = ChatTemplate(source, named, now)
    self._secret = "".join(chr(ord("a") + byte % 26) for byte in secrets.token_bytes(24))
    added = tokenizer.fast.get_added_tokens_decoder()
    self._control = {token.content: number for number, token in added.items() if token.special}
    lacking = sorted({*CONTROL} - {*self._control})
    if lacking and source == read_template("chatml"):
      why = f"neither a chat template nor the special token {lacking[0]!r} of ChatML, the default"
      raise UserError(f"chat: the tokenizer has {why}; name another template, such as `plain`")
    self._skeletons: dict[tuple[tuple[tuple[str, bool], ...], bool], _Skeleton] = {}

  def encode(self, messages: Sequence[Message], prompt: bool = False) -> ChatIds:
    """Returns the ids of a dialogue, and which of them are the assistant's.

    Args:
      prompt: whether the start of the next answer follows.

    Raises:
      ChatError: the template refuses the messages or changes them, or the ids of an answer do not decode to it.
    """
    roles = tuple((message.role, message.image) for message in messages)  # what a template writes depends on both
    skeleton = self._skeleton(roles, prompt)
    text = self.template.render(messages, prompt)
    contents = self._contents(text, skeleton, messages)
    literals = [self._hide(literal) for literal in skeleton.literals]
    answers: list[tuple[str, int, int, int]] = []  # the text of each, where it starts and ends, and where its turn ends
    parts = [literals[0]]
    for i, (content, number) in enumerate(zip(contents, skeleton.messages, strict=True)):
      at = sum(map(len, parts))
      end = at + len(content)
      if roles[number][0] == ASSISTANT:
        start = at - self._before_answer(roles, skeleton, i)
        answers.append((content, start, end, end + self._end_of_turn(literals[i + 1])))
      parts += [content, literals[i + 1]]
    encoding = self._renamed.encode("".join(parts), add_special_tokens=False)
    ids = np.array(encoding.ids, np.int32)
    starts, stops = np.array(encoding.offsets, np.int64).reshape(-1, 2).T
    answer = np.zeros(len(ids), bool)
    for content, first, middle, last in answers:
      own = (starts >= first) & (stops <= last)
      answer |= own
      self._check(ids[own & (stops <= middle)], content)
    return ChatIds(ids, answer)

  def _check(self, ids: np.ndarray, content: str) -> None:
    """Raises ChatError where the ids of an answer do not decode to its text, or to what its own ids decode to."""
    fast = self.tokenizer.fast
    text = fast.decode(ids.tolist(), skip_special_tokens=False).strip()
    if (
      text != content.strip() and text != fast.decode(self.tokenizer.encode(content), skip_special_tokens=False).strip()
    ):
      raise ChatError("the tokens of an answer do not decode to its text: the template joins them with others")

  def _skeleton(self, roles: tuple[tuple[str, bool], ...], prompt: bool) -> _Skeleton:
    if (roles, prompt) not in self._skeletons:
      messages = [Message(role, f"{self._secret}{i}{self._secret}", image) for i, (role, image) in enumerate(roles)]
      text = self.template.render(messages, prompt)
      parts = re.split(f"{self._secret}([0-9]+){self._secret}", text)
      self._skeletons[roles, prompt] = _Skeleton(tuple(parts[::2]), tuple(map(int, parts[1::2])))
    return self._skeletons[roles, prompt]

  def _contents(self, text: str, skeleton: _Skeleton, messages: Sequence[Message]) -> list[str]:
    """Returns the messages as the template writes them: as they are, or without white space around them."""
    first, *rest = skeleton.literals
    contents: list[str] = []
    at = len(first) if text.startswith(first) else -1
    for number, after in zip(skeleton.messages, rest, strict=True):
      changed = (strip(messages[number].content) for strip in STRIPS)
      shown = next((own for own in changed if text.startswith(own + after, at)), None) if at >= 0 else None
      if shown is None:
        raise ChatError("the chat template changes the text of a message, and it is not known whose text is whose")
      contents.append(shown)
      at += len(shown) + len(after)
    if at != len(text):
      raise ChatError("the chat template writes other text for these messages than for others with the same roles")
    return contents

  def _before_answer(self, roles: tuple[tuple[str, bool], ...], skeleton: _Skeleton, i: int) -> int:
    """Returns how many characters the template writes between the start of an answer and its text."""
    own = skeleton.literals[: i + 1]
    try:
      before = self._skeleton(roles[: skeleton.messages[i]], True).literals
    except ChatError:  # a template may refuse a dialogue that the assistant starts
      before = ()
    same = before and before[:-1] == own[:-1] and own[-1].startswith(before[-1])
    return len(self._hide(own[-1][len(before[-1]) :])) if same else len(own[-1]) - len(own[-1].rstrip(" "))

  def _end_of_turn(self, literal: str) -> int:
    """Returns how many characters after the text of an answer end it: the first special token, if nothing is before."""
    match = re.match(rf"\s*{self._secret}[0-9]+{self._secret}", literal)
    return match.end() if match else 0

  def _hide(self, literal: str) -> str:
    """Returns what a template writes, with the names that special tokens have in the copy of the tokenizer."""
    return self._pattern.sub(lambda match: f"{self._secret}{self._control[match[0]]}{self._secret}", literal)

  @functools.cached_property
  def _pattern(self) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(self._control, key=len, reverse=True))) or "(?!)")

  @functools.cached_property
  def _renamed(self) -> tokenizers.Tokenizer:
    """The copy of the tokenizer whose special tokens have hidden names."""
    data: dict[str, Any] = parse_json(self.tokenizer.fast.to_str())
    model, names = data["model"], {name: self._hide(name) for name in self._control}
    for token in data["added_tokens"]:
      token["content"] = names.get(token["content"], token["content"])
    if isinstance(model["vocab"], list):
      model["vocab"] = [[names.get(token, token), score] for token, score in model["vocab"]]
    else:
      model["vocab"] = {names.get(token, token): i for token, i in model["vocab"].items()}
    if "merges" in model:
      model["merges"] = [pair for pair in model["merges"] if "".join(pair) not in names and not {*pair} & {*names}]
    if model.get("unk_token") in names:
      model["unk_token"] = names[model["unk_token"]]
    return tokenizers.Tokenizer.from_str(json.dumps(data | {"post_processor": None}))


def read_template(template: str) -> str:
  """Returns a template by its name or path, or itself."""
  if template in TEMPLATES:
    return read_text(pathlib.Path(__file__).with_name(f"{template}.jinja"))
  return template if not template or "{" in template else read_text(template)
