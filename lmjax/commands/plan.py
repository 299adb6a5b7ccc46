"""Compile the training step of a config for devices that are not available, and report memory, time, energy and cost.

lmjax plan --config configs/llama.py:size=7b --topology v5e:16x16
lmjax plan --config configs/llama.py:size=7b --topology v5e-256 --fit --tokens 2e12 --json
lmjax plan --config configs/gpt2.py --topology h100:8          (counted: GPUs have no compiler for absent devices)
lmjax plan --workdir small --topology v5e:1x1                  (decoding with a saved model, such as a quantized one)
lmjax plan --strubell                                          (the published energy table, recomputed)
lmjax plan --trend --output trend.png                          (published models over time, and their compute)
"""

import argparse
import json
import math
from typing import Any

from lmjax import config as configs
from lmjax import storage
from lmjax.commands.options import new_parser, parse_overrides, refuse
from lmjax.commands.values import new_file
from lmjax.inference.output import show
from lmjax.logs import console
from lmjax.planning import energy, tables, trend
from lmjax.planning.aot import parse_topology
from lmjax.planning.decoding import decoding_report
from lmjax.planning.hardware import PUE
from lmjax.planning.report import plan
from lmjax.train import jit_step
from lmjax.utils.errors import UserError, did_you_mean


def main(arguments: list[str]) -> int:
  """Runs `lmjax plan`; the exit code is 1 where the step does not fit."""
  parser = new_parser("plan", __doc__)
  parser.add_argument("--config", help="configs/NAME.py[:variant,...]; --config.key=value as for train")
  parser.add_argument("--topology", help="v5e:16x16 (chips), v5e-256 (product name), also v4 v5p v6e; h100:8, cpu:8")
  parser.add_argument("--workdir", help="a saved model: the decoding of a token instead of a training step")
  parser.add_argument("--batch", type=int, least=1, default=1, help="of --workdir: rows; default 1")
  parser.add_argument(
    "--length", type=int, least=1, help="of --workdir: tokens of the cache; default the longest input"
  )
  parser.add_argument("--num_slices", type=int, least=1, default=1, help="TPU slices, joined by a data-centre network")
  parser.add_argument("--vocabulary", type=int, least=1, help="vocabulary size, without the config's tokenizer")
  parser.add_argument("--steps", type=float, least=1, help="steps of the whole run; default the config's")
  parser.add_argument("--tokens", type=float, least=1, help="tokens of the whole run, instead of --steps")
  parser.add_argument("--fit", action="store_true", help="find the largest batch that fits")
  parser.add_argument("--pue", type=float, least=1, most=10, default=PUE, help="power usage effectiveness of the site")
  parser.add_argument("--region", help=f"carbon intensity of {', '.join(energy.INTENSITY)}; default the paper's")
  parser.add_argument("--watts", type=float, help="watts per device, including its share of the machine")
  parser.add_argument("--price", type=float, help="dollars per device and hour")
  parser.add_argument("--json", action="store_true", help="print the report as JSON")
  parser.add_argument("--strubell", action="store_true", help="the table of Strubell et al. (2019), recomputed")
  parser.add_argument("--trend", action="store_true", help="published models over time, and their training compute")
  parser.add_argument("--output", type=new_file, help="a PNG file to draw the trend in")
  options, overrides = parse_overrides(parser, arguments)
  other = "config vocabulary steps tokens fit pue region watts price strubell trend"
  refuse(parser, options, {"workdir": other}, {"trend": "output", "workdir": "batch length"})
  if options.trend:
    _print_trend(options.output, options.json)
    return 0
  if options.strubell:
    _print_strubell(options.json)
    return 0
  report = _decoding_report(options, overrides) if options.workdir else _report(options, overrides)
  if options.json:
    print(json.dumps(report, indent=2))
  else:
    show(tables.decoding_table(report) if options.workdir else tables.report_table(report))
  return 0 if report["fits"] else 1


def _decoding_report(options: argparse.Namespace, overrides: dict[str, str]) -> dict[str, Any]:
  if overrides or not options.topology:
    reason = f"--config.{next(iter(overrides))} has no effect with --workdir" if overrides else "--topology is required"
    raise UserError(f"plan: {reason}")
  target, saved = parse_topology(options.topology, options.num_slices), storage.open(options.workdir)
  return {"workdir": options.workdir} | decoding_report(saved, target, options.batch, options.length or 0)


def _report(options: argparse.Namespace, overrides: dict[str, str]) -> dict[str, Any]:
  if not options.config or not options.topology:
    raise UserError("plan: --config and --topology are required")
  if options.region and options.region not in energy.INTENSITY:
    raise UserError(f"plan: unknown region {options.region!r}{did_you_mean(options.region, energy.INTENSITY)}")
  target = parse_topology(options.topology, options.num_slices)
  if options.fit and target.chip is None:
    raise UserError(f"plan: --fit needs a device with a known memory size, not {target.name}; change --topology")
  settings = configs.load(options.config, overrides)
  settings["steps"] = int(options.steps or settings["steps"])
  say = _say if options.fit and not options.json else lambda report: None
  report = plan(settings, target, jit_step, options.vocabulary, options.fit, say)
  tokens_per_step = report["batch"] * report["length"]
  steps = math.ceil(options.tokens / tokens_per_step) if options.tokens else settings["steps"]
  costs = energy.run_costs(report, target, steps, options.pue, options.region, options.watts, options.price)
  return {"config": options.config} | report | {"run": costs}


def _say(report: dict[str, Any]) -> None:
  total = report["bytes_per_device"]["total"] / 1e9
  console.print(f"batch {report['batch']}: {total:.2f} GB per device", style="dim")


def _print_trend(output: str | None, as_json: bool) -> None:
  rows = trend.trend_rows()
  if output:
    trend.draw_trend(rows, output)
  if as_json:
    print(json.dumps(rows, indent=2))
  else:
    show(tables.trend_table(rows))


def _print_strubell(as_json: bool) -> None:
  rows = energy.strubell_rows()
  if as_json:
    print(json.dumps({"table": rows, "co2e_lb_of": energy.COMPARISONS}, indent=2))
    return
  show(tables.strubell_table(rows))
  for name, pounds in energy.COMPARISONS.items():
    console.print(f"{pounds:>9,} lb CO2e: {name}")
