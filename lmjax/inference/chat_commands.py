"""What a line that starts with / does to a conversation, typed in a terminal or sent by the page."""

import dataclasses

from lmjax.inference.chat import Chat
from lmjax.utils.errors import UserError, did_you_mean, reason

COMMANDS = ("/reset", "/system", "/undo", "/temperature", "/image", "/save", "/load", "/help")


def run_command(chat: Chat, text: str, known: tuple[str, ...] = COMMANDS) -> str:
  """Does what a command says to a conversation, and returns the command's name.

  Args:
    known: the commands that may be used; what `/help` prints is left to the caller.

  Raises:
    UserError: there is no such command, or its value cannot be used.
  """
  name, _, value = text.partition(" ")
  value = value.strip()
  if name not in known:
    raise UserError(f"no command {name}{did_you_mean(name, known)}; /help lists them")
  if name in ("/save", "/load") and not value:
    raise UserError(f"{name} needs the name of a file")
  if name == "/temperature":
    try:
      chat.sampling = dataclasses.replace(chat.sampling, temperature=float(value))
    except ValueError as error:
      raise UserError(f"/temperature: {reason(error)}") from error
  elif name in ("/reset", "/undo"):
    chat.reset() if name == "/reset" else chat.undo()
  elif name != "/help":
    {"/system": chat.set_system, "/image": chat.show, "/save": chat.save, "/load": chat.load}[name](value)
  return name
