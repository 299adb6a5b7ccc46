"""What a model reads before its answer in a chat, and the tokens that end the answer."""

import functools
from collections.abc import Sequence

import numpy as np

from lmjax.data.chat.format import ASSISTANT, ChatFormat
from lmjax.data.chat.template import ChatError, Message
from lmjax.data.tokenizers.base import ends_of


class ChatPrompts(ChatFormat):
  """The chat format of a tokenizer, for answers that a model writes."""

  @functools.cached_property
  def ends(self) -> tuple[int, ...]:
    """The ids that end an answer: what the template writes after one, and the ends of the tokenizer."""
    try:
      ids, answer = self.encode([Message("user", "a"), Message(ASSISTANT, "a")])
    except ChatError:  # a template that writes no such dialogue
      return ends_of(self.tokenizer)
    after = {int(i) for i in ids[np.flatnonzero(answer)[-1:]]} & self.tokenizer.special
    return tuple(dict.fromkeys([*after, *ends_of(self.tokenizer)]))

  def prompt(self, messages: Sequence[Message]) -> list[int]:
    """Returns the ids of a dialogue up to where the next answer starts; raises ChatError, see `encode`."""
    ids: list[int] = self.encode(messages, prompt=True).ids.tolist()
    return ids
