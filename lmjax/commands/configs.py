"""The configs that can be trained: their variants, and what every key means.

lmjax configs                        (all of them)
lmjax configs gpt2                   (variants, and all keys with their values and meanings)
lmjax configs gpt2:size=355m --keys optim
"""

import inspect
import json

from rich.table import Table
from rich.text import Text

from lmjax import config
from lmjax.commands.options import new_parser, parse
from lmjax.inference.meanings import keys
from lmjax.inference.output import show
from lmjax.logs import console
from lmjax.utils.errors import UserError


def main(arguments: list[str]) -> int:
  """Runs `lmjax configs`."""
  parser = new_parser("configs", __doc__)
  parser.add_argument("name", nargs="?", help="the name or the path of a config, with variants: gpt2:size=124m")
  parser.add_argument("--keys", default="", help="the section to list, such as optim; default all")
  options = parse(parser, arguments)
  if not options.name:
    listed = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for name, path in config.known().items():
      listed.add_row(Text(name), Text((inspect.cleandoc(config.documentation(path)).splitlines() or [""])[0]))
    show(listed)
    console.print("\nlmjax train --config NAME --workdir runs/NAME      lmjax configs NAME for variants and keys")
    return 0
  settings = config.load(options.name)
  console.print(config.documentation(options.name).strip() + "\n")
  for name, default in config.variants(options.name).items():
    if isinstance(default, tuple):
      console.print(f"  {name:<14}one of {' '.join(default)}; default {default[0]}")
    else:
      console.print(f"  {name:<14}{'a switch' if default is False else f'a value; default {json.dumps(default)}'}")
  rows = [row for row in keys(settings) if row[0].startswith(options.keys)]
  if not rows:
    raise UserError(f"configs: no key starts with {options.keys!r}; known: {', '.join(settings)}")
  table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
  for column in ("key", "value", "meaning"):
    table.add_column(column, overflow="fold", ratio=2 if column == "meaning" else 1)
  for key, value, meaning in rows:
    table.add_row(Text(key), Text(value if isinstance(value, str) else json.dumps(value)), Text(meaning))
  console.print()
  show(table)
  return 0
