"""Talk to a model that was trained on dialogues.

    lmjax chat --workdir runs/sft
    lmjax chat --workdir smollm2.gguf --system "Answer in one sentence." --temperature 0
    lmjax chat --workdir runs/sft --message "What is a tree?"
    lmjax chat --workdir runs/sft --web

A message is a line; one that ends with a backslash continues in the next line. Ctrl-C stops the answer, Ctrl-D ends the
conversation. When it no longer fits the model's window, the oldest turns are dropped, but not the system message.

  /reset              start again, with the same system message and no image
  /system TEXT        set the system message; without TEXT, remove it
  /undo               remove the last message and its answer
  /temperature T      0 is greedy
  /image FILE         show the model a PNG or JPEG image; without FILE, none
  /save FILE          write the conversation as JSON
  /load FILE          continue one that was saved
  /help               this list
"""

import importlib
import sys

from lmjax import storage
from lmjax.commands.options import new_parser, parse, refuse
from lmjax.commands.values import add_step
from lmjax.decode.logits import Sampling
from lmjax.inference.chat import Chat, typed_messages
from lmjax.inference.chat_commands import run_command
from lmjax.parallel.sharding import use_layout
from lmjax.utils.errors import UserError


def main(arguments: list[str]) -> int:
  """Runs `lmjax chat`."""
  parser = new_parser("chat", __doc__)
  parser.add_argument(
    "--workdir", required=True, help="a run folder, a Hugging Face folder, a GGUF file, or hf:owner/name"
  )
  add_step(parser)
  parser.add_argument(
    "--message", action="append", help="a message, instead of what is typed; may be given several times"
  )
  parser.add_argument("--system", default="", help="the system message")
  parser.add_argument("--template", default="", help="chatml, plain, or a Jinja file; default the tokenizer's own")
  parser.add_argument("--max_new_tokens", type=int, default=512, help="of an answer")
  parser.add_argument("--temperature", type=float, default=0.7, help="0 is greedy")
  parser.add_argument("--top_k", type=int, default=0)
  parser.add_argument("--top_p", type=float, default=0.95)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of weights and computation; default the run's")
  parser.add_argument("--web", action="store_true", help="a page for a browser on this machine, instead")
  parser.add_argument("--port", type=int, most=65535, default=8765, help="of the page; 0 is any that is free")
  options = parse(parser, arguments)
  refuse(parser, options, {"web": "message"}, {"web": "port"})
  if options.max_new_tokens < 1:
    raise UserError(f"chat: --max_new_tokens must be at least 1, not {options.max_new_tokens}")
  try:
    sampling = Sampling(options.temperature, options.top_k, options.top_p)
  except ValueError as error:
    raise UserError(f"chat: {error}") from error
  loaded = storage.open(options.workdir, options.step).load(options.dtype)
  with use_layout(loaded.layout):
    chat = Chat(loaded, options.template, sampling, options.max_new_tokens, options.seed)
    chat.set_system(options.system)
    if options.web:
      importlib.import_module("lmjax.inference.chat_page").serve(chat, options.port)  # not needed in a terminal
      return 0
    for text in options.message or typed_messages():
      try:
        _command(chat, text) if text.startswith("/") else _answer(chat, text)
      except UserError as error:  # of this message alone
        print(f"lmjax: {error}", file=sys.stderr)
  return 0


def _answer(chat: Chat, text: str) -> None:
  ids, dropped = chat.fit(text)
  if dropped:
    print(f"lmjax: the oldest {dropped} messages no longer fit and are dropped", file=sys.stderr)
  parts = chat.answer(ids, text)
  try:
    for part in parts:
      print(part, end="", flush=True)
  except KeyboardInterrupt:
    print(" [stopped]", end="")
  finally:
    parts.close()
    print()


def _command(chat: Chat, text: str) -> None:
  if run_command(chat, text) == "/help":
    print(__doc__[__doc__.index("  /reset") :].rstrip())
