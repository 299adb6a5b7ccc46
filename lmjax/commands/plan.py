"""Know before you launch: compile a config's very step for devices that are not here, and say what it costs.

lmjax plan --config configs/llama.py:size=7b --topology v5e:16x16
lmjax plan --config configs/llama.py:size=7b --topology v5e-256 --fit --tokens 2e12 --json
lmjax plan --config configs/gpt2.py --topology h100:8          (no compiler for an absent GPU: by counting)
lmjax plan --strubell                                          (the published energy table beside ours)
"""

import argparse
import json
import math
import time
from typing import Any

import jax
from rich.table import Table

from lmjax import config as configs
from lmjax import experiment as experiments
from lmjax.experiment import Experiment
from lmjax.layers.backend import compiler_options
from lmjax.logs import console, show
from lmjax.parallel.sharding import use_layout
from lmjax.planning import energy
from lmjax.planning.aot import Compiled, Topology, compile_step, topology
from lmjax.planning.estimate import estimate, executed_flops
from lmjax.planning.flops import FORMULA, train_step_flops
from lmjax.planning.hardware import PUE, kilowatt_hours
from lmjax.train import make_step
from lmjax.utils.errors import UserError, did_you_mean


def main(arguments: list[str]) -> int:
  """Runs `lmjax plan`."""
  parser = argparse.ArgumentParser(
    prog="lmjax plan", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--config", help="configs/NAME.py[:variant,...]; --config.key=value as for train")
  parser.add_argument("--topology", help="v5e:16x16 (chips), v5e-256 (sales name), also v4 v5p v6e; h100:8, cpu:8")
  parser.add_argument("--num_slices", type=int, default=1, help="TPU slices, joined by the data-centre network")
  parser.add_argument("--vocabulary", type=int, help="ids, where the config's tokenizer is not at hand")
  parser.add_argument("--steps", type=float, help="of the whole run; default the config's")
  parser.add_argument("--tokens", type=float, help="of the whole run, instead of --steps")
  parser.add_argument("--fit", action="store_true", help="find the largest batch a device that fits")
  parser.add_argument("--pue", type=float, default=PUE, help=f"overhead of the building; default {PUE}")
  parser.add_argument("--region", help=f"carbon intensity of {', '.join(energy.INTENSITY)}; default the paper's")
  parser.add_argument("--watts", type=float, help="of a device with its share of the machine")
  parser.add_argument("--price", type=float, help="dollars an hour and device")
  parser.add_argument("--json", action="store_true", help="print the report as JSON")
  parser.add_argument("--strubell", action="store_true", help="the table of Strubell et al. (2019), recomputed")
  options, overrides = configs.parse_overrides(parser, arguments)
  if options.strubell:
    return _strubell(options.json)
  if not options.config or not options.topology:
    raise UserError("plan: of what, and for what? give --config and --topology")
  if options.region and options.region not in energy.INTENSITY:
    raise UserError(f"plan: no region {options.region!r}{did_you_mean(options.region, energy.INTENSITY)}")
  where = topology(options.topology, options.num_slices)
  settings = configs.load(options.config, overrides)
  settings["steps"] = int(options.steps or settings["steps"])
  report = _fit(settings, where, options) if options.fit else make_report(settings, where, options)
  if options.json:
    print(json.dumps(report, indent=2))
  else:
    _print(report, where)
  return 0 if report["fits"] else 1


def make_report(settings: dict[str, Any], where: Topology, options: argparse.Namespace) -> dict[str, Any]:
  """Returns the report of one batch size."""
  began = time.perf_counter()
  run = _experiment(settings, where, options.vocabulary)
  capacity = where.chip.memory if where.chip else math.inf
  compiled = _compile(run, where, capacity, began) if where.compiles else estimate(run, capacity)
  useful = train_step_flops(run.task, run.batch, run.data.length)
  report = {
    "config": options.config,
    "parameters": run.parameters,
    "topology": f"{where.name}:{'x'.join(map(str, where.grid)) or where.count}",
    "num_slices": where.slices,
    "devices": where.count,
    "mesh": dict(run.layout.mesh.shape),
    "batch": run.batch,
    "batch_per_device": run.batch / where.count,
    "length": run.data.length,
    "method": "compiled" if where.compiles else "counted: no compiler for absent devices of this kind",
    "bytes_per_device": {
      "arguments": compiled.arguments,
      "temporaries": compiled.temporaries,
      "output": compiled.output,
      "total": compiled.total,
      "capacity": None if math.isinf(capacity) else int(capacity),
    },
    "fits": compiled.fits,
    "flops_per_step": {"full_attention": useful.full, "causal_attention": useful.causal, "formula": FORMULA},
    "collectives": compiled.collectives,
    "compile_seconds": round(compiled.seconds, 1),
  }
  report |= _time(run, where, compiled, useful)
  return report | {"run": _costs(report, where, settings, options)}


def _experiment(settings: dict[str, Any], where: Topology, vocabulary: int | None) -> Experiment:
  """Returns the experiment on absent devices; GPUs and CPUs are counted on one mesh of stand-ins."""
  if where.compiles:
    devices = where.devices()
  else:
    devices = [jax.devices("cpu")[0]] * where.count
  return experiments.build(settings, devices=devices, vocabulary=vocabulary)


def _compile(run: Experiment, where: Topology, capacity: float, began: float) -> Compiled:
  with use_layout(run.layout):
    state = run.state(abstract=True)
    spec = run.task.spec(run.batch, run.data.length)
    shardings = run.layout.batch(spec)
    batch = {k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=shardings[k]) for k, v in spec.items()}
    key = jax.eval_shape(lambda: jax.random.key(0))
    rng = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=run.layout.sharding())
    step = make_step(run.task, run.optimizer.build(run.steps), run.transform, run.optimizer.microbatches)
    kept = (jax.tree.map(lambda leaf: leaf.sharding, state), None)
    step = jax.jit(step, donate_argnums=0, out_shardings=kept, compiler_options=compiler_options())
    return compile_step(step.lower(state, batch, rng), capacity, where.slices, began)


def _time(run: Experiment, where: Topology, compiled: Compiled, useful) -> dict[str, Any]:
  """Returns the least time of a step and what bounds it: each part alone, as if all others hid behind it."""
  if where.chip is None:
    return {"seconds_per_step": None, "utilisation_bound": None, "bound_by": None, "seconds_of": {}}
  chip = where.chip
  executed = executed_flops(run)
  parts = {"compute": executed.executed(run.task.model.causal) / where.count / chip.flops}
  # Each weight is read in the compute type forwards, backwards and where it is recomputed, and the state once, in
  # float32, by the optimizer.
  shares = run.layout.num_shards("heads")
  parts["memory"] = (3 * 2 * run.parameters / shares + 2 * compiled.arguments) / chip.bandwidth
  if compiled.collectives is not None:
    moved = sum(c["bytes"] - c["network_bytes"] for c in compiled.collectives.values())
    parts["links"] = moved / chip.links
    crossing = sum(c["network_bytes"] for c in compiled.collectives.values())
    if crossing:
      parts["network"] = crossing / chip.network
  bound = max(parts, key=parts.get)
  seconds = parts[bound]
  return {
    "seconds_per_step": seconds,
    "bound_by": bound,
    "seconds_of": parts,
    "executed_flops_per_step": executed.executed(run.task.model.causal),
    "utilisation_bound": {
      "full_attention": useful.full / where.count / chip.flops / seconds,
      "causal_attention": useful.causal / where.count / chip.flops / seconds,
    },
  }


def _costs(report: dict[str, Any], where: Topology, settings: dict[str, Any], options) -> dict[str, Any]:
  """Returns what the whole run takes at the bound: a floor, since no run reaches it."""
  tokens_per_step = report["batch"] * report["length"]
  steps = math.ceil(options.tokens / tokens_per_step) if options.tokens else settings["steps"]
  run: dict[str, Any] = {"steps": steps, "tokens": steps * tokens_per_step}
  seconds = report["seconds_per_step"]
  hours = None if seconds is None else steps * seconds / 3600
  watts = options.watts or (where.chip.watts if where.chip else None)
  price = options.price or (where.chip.price if where.chip else None)
  kwh = None if hours is None or watts is None else kilowatt_hours(watts * where.count, hours, options.pue)
  pounds = energy.POUNDS_PER_KWH
  if options.region:
    pounds = energy.INTENSITY[options.region] / 1000 / energy.KILOGRAMS_PER_POUND
  run |= {
    "hours": hours,
    "device_hours": None if hours is None else hours * where.count,
    "kwh": kwh,
    "co2e_lb": None if kwh is None else kwh * pounds,
    "co2e_kg": None if kwh is None else kwh * pounds * energy.KILOGRAMS_PER_POUND,
    "cost_usd": None if hours is None or price is None else hours * where.count * price,
    "assumptions": {
      "hours": "at the bound: a floor; published runs reach 0.46 to 0.71 of the peak (MaxText, v5e and v5p)",
      "watts": f"{watts:g} a device" if watts else "no published figure for this device: give --watts",
      "price": f"${price:g} an hour and device" if price else "none known: give --price",
      "pue": f"{options.pue:g}" + (" (Strubell et al., 2019)" if options.pue == PUE else ""),
      "carbon": f"{pounds:.3f} lb a kWh" + (f" ({options.region}, Ember 2023)" if options.region else " (EPA 2018)"),
      "sources": "lmjax/planning/hardware.py, lmjax/planning/energy.py",
    },
  }
  return run


def _fit(settings: dict[str, Any], where: Topology, options: argparse.Namespace) -> dict[str, Any]:
  """Returns the report of the largest batch that fits, in rows for every device that shares the batch."""
  run = _experiment(settings, where, options.vocabulary)
  rows = run.layout.num_shards("batch") * run.optimizer.microbatches
  tried: dict[int, dict[str, Any]] = {}

  def fits(times: int) -> bool:
    if times not in tried:
      tried[times] = make_report(settings | {"batch": times * rows}, where, options)
      total = tried[times]["bytes_per_device"]["total"] / 1e9
      if not options.json:
        console.print(f"batch {times * rows}: {total:.2f} GB a device", style="dim", markup=False)
    return tried[times]["fits"]

  if not fits(1) or not fits(2):
    return tried[1]
  # Memory grows about evenly with the batch: the guess is close, and the last step is always tried.
  one, two = (tried[n]["bytes_per_device"]["total"] for n in (1, 2))
  capacity = tried[1]["bytes_per_device"]["capacity"]
  if capacity is None:
    raise UserError("plan: --fit needs a device whose memory is known; a CPU's is not")
  best = max(int((capacity - one) / max(two - one, 1)) + 1, 2)
  while not fits(best):
    best -= 1
  while fits(best + 1):
    best += 1
  return tried[best]


def _print(report: dict[str, Any], where: Topology) -> None:
  table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
  size = {k: "-" if v is None else f"{v / 1e6:,.0f} MB" for k, v in report["bytes_per_device"].items()}
  mesh = " ".join(f"{axis}={n}" for axis, n in report["mesh"].items())
  table.add_row("parameters", f"{report['parameters']:,}")
  table.add_row("devices", f"{report['devices']} ({report['topology']}, {report['num_slices']} slice(s)), mesh {mesh}")
  table.add_row("batch", f"{report['batch']} x {report['length']} tokens, {report['batch_per_device']:g} rows a device")
  parts = f"{size['arguments']} arguments + {size['temporaries']} temporaries + {size['output']} output"
  table.add_row(
    "memory a device", f"{size['total']} of {size['capacity']}: {'fits' if report['fits'] else 'DOES NOT FIT'}"
  )
  table.add_row("", f"{parts} ({report['method']}, {report['compile_seconds']} s)")
  flops = report["flops_per_step"]
  table.add_row("FLOPs a step", f"{flops['full_attention']:.4g}, causal {flops['causal_attention']:.4g}")
  table.add_row("", flops["formula"])
  for kind, moved in (report["collectives"] or {}).items():
    table.add_row(kind, f"{moved['bytes'] / 1e9:,.2f} GB a device and step, in {moved['count']:,.0f}")
  if report["collectives"] is None:
    table.add_row("collectives", f"not known: {'it does not fit' if where.compiles else 'not compiled'}")
  if report["seconds_per_step"] is not None:
    each = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in report["seconds_of"].items())
    table.add_row("step", f"at least {report['seconds_per_step']:.3f} s, bound by {report['bound_by']} ({each})")
    bound = report["utilisation_bound"]
    table.add_row("utilisation", f"at most {bound['full_attention']:.1%}, causal {bound['causal_attention']:.1%}")
  run = report["run"]
  table.add_row("run", f"{run['steps']:,} steps, {run['tokens']:,} tokens")
  if run["hours"] is not None:
    known = {"kWh": run["kwh"], "kg CO2e": run["co2e_kg"], "lb CO2e": run["co2e_lb"], "dollars": run["cost_usd"]}
    told = ", ".join(f"{v:,.0f} {k}" for k, v in known.items() if v is not None)
    table.add_row("", f"{run['hours']:,.1f} hours, {run['device_hours']:,.0f} device hours{', ' if told else ''}{told}")
  for name, assumption in run["assumptions"].items():
    table.add_row(f"  {name}", assumption, style="dim")
  show(table)


def _strubell(as_json: bool) -> int:
  rows = energy.strubell_table()
  if as_json:
    print(json.dumps({"table": rows, "co2e_lb_of": energy.COMPARISONS}, indent=2))
    return 0
  table = Table(
    box=None, header_style="bold", padding=(0, 2, 0, 0), title="published, then recomputed", title_justify="left"
  )
  for name in ("model", "hardware", "watts", "hours", "kWh", "", "CO2e lb", "", "dollars", ""):
    table.add_column(name, justify="left" if name in ("model", "hardware") else "right")
  for row in rows:
    cells = [row["model"], row["hardware"], f"{row['watts']:,.2f}" if row["watts"] else "-", f"{row['hours']:,}"]
    for key in ("kwh", "co2e_lb"):
      cells += [f"{row[side][key]:,.0f}" if row[side][key] is not None else "-" for side in ("published", "ours")]
    cells += ["-".join(f"{v:,.0f}" for v in row[side]["usd"]) for side in ("published", "ours")]
    table.add_row(*cells)
  show(table)
  for name, pounds in energy.COMPARISONS.items():
    console.print(f"{pounds:>9,} lb CO2e: {name}", markup=False)
  return 0
