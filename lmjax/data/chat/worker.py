"""Renders chat templates in a process of its own, within limits on processor time, memory and files.

A template is a program that a stranger wrote. Jinja2's sandbox keeps it from Python's objects; these limits end a
template that never ends. Each line of standard input is a JSON object {"template", "variables", "now"}, each line of
standard output {"text"} or {"error"}.
"""

import contextlib
import datetime
import functools
import importlib
import json
import resource
import sys
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 2  # of processor time for one line of input
MEMORY = 256 * 2**20  # bytes of address space more than before the first template
CHARACTERS = 16 * 2**20  # of a rendered text


class Generation(Extension):
  """`{% generation %}`, by which some templates mark what a model writes; it renders what is in it."""

  tags = {"generation"}

  def parse(self, parser: Parser) -> Any:
    next(parser.stream)
    body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
    return nodes.Scope(body)


def _refuse(message: str) -> None:
  raise jinja2.TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
  known = {key: options[key] for key in ("indent", "separators", "sort_keys") if key in options}
  return json.dumps(value, ensure_ascii=ensure_ascii, **known)


@functools.cache
def compiled(template: str) -> jinja2.Template:
  """Returns a template, in an environment like that of transformers."""
  environment = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
  )
  environment.filters["tojson"] = _to_json
  environment.globals["raise_exception"] = _refuse
  return environment.from_string(template)


def _message(message: dict[str, Any], template: str) -> dict[str, Any]:
  """Returns what a template reads of a message: its text, or a list of parts where the template knows images."""
  image, content = message.pop("image", False), message["content"]
  if any(name in template for name in ("'image'", '"image"')):
    message["content"] = [{"type": "image"}] * image + [{"type": "text", "text": content}]
  return message


def render(line: dict[str, Any]) -> str:
  """Returns what the template of a line writes."""
  now = datetime.datetime.fromisoformat(line["now"])
  variables = line["variables"] | {"strftime_now": now.strftime, "tools": None, "documents": None}
  variables["messages"] = [_message(message, line["template"]) for message in variables.get("messages", ())]
  parts, size = [], 0
  for part in compiled(line["template"]).generate(**variables):
    parts.append(part)
    size += len(part)
    if size > CHARACTERS:
      raise ValueError(f"writes more than {CHARACTERS:,} characters")
  return "".join(parts)


def limit_resources() -> None:
  """No more memory than now and `MEMORY`, and no file: neither is needed for a template."""
  for name in ("jinja2.debug", "encodings.unicode_escape", "textwrap", "pprint"):  # which templates import when needed
    importlib.import_module(name)
  compiled("{% for x in messages %}{{ 'a\\n' + x | trim | tojson }}{% endfor %}").render(messages=["a"])
  with contextlib.suppress(OSError, ValueError):  # a system without /proc has no limit on memory
    with open("/proc/self/statm") as file:
      used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
  for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
    with contextlib.suppress(OSError, ValueError):
      resource.setrlimit(kind, (0, 0))


def answer(line: str) -> dict[str, Any]:
  """Returns the answer to a line of input; the process is ended if it takes too long."""
  used = resource.getrusage(resource.RUSAGE_SELF)
  most = int(used.ru_utime + used.ru_stime) + 1 + SECONDS
  resource.setrlimit(resource.RLIMIT_CPU, (most, resource.getrlimit(resource.RLIMIT_CPU)[1]))
  try:
    return {"text": render(json.loads(line))}
  except MemoryError:
    return {"error": "needs too much memory"}
  except jinja2.TemplateSyntaxError as error:
    return {"error": f"is not a Jinja template: line {error.lineno}: {error.message}"}
  except RecursionError:
    return {"error": "is nested too deeply"}
  except Exception as error:  # whatever a template does
    return {"error": f"refuses: {error}" if type(error) is jinja2.TemplateError else f"fails: {error!r}"}


if __name__ == "__main__":
  limit_resources()
  for request_line in sys.stdin:
    print(json.dumps(answer(request_line)), flush=True)
