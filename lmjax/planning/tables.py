"""Reports and the published energy figures as tables for the terminal."""

from typing import Any

from rich.table import Table


def report_table(report: dict[str, Any]) -> Table:
  """Returns the table of a report of `planning.report` that has `planning.energy.run_costs` under `run`."""
  table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
  size = {k: "-" if v is None else f"{v / 1e6:,.0f} MB" for k, v in report["bytes_per_device"].items()}
  mesh = " ".join(f"{axis}={n}" for axis, n in report["mesh"].items())
  table.add_row("parameters", f"{report['parameters']:,}")
  if report["active"] != report["parameters"]:
    table.add_row("active", f"{report['active']:,} parameters, those that a token uses")
  trained = report["trained"]
  if trained["parameters"] != report["parameters"]:
    share = trained["parameters"] / report["parameters"]
    table.add_row("trained", f"{trained['parameters']:,} parameters, {share:.3%}")
    full = trained["full_state_bytes"] / 1e6
    table.add_row("state", f"{trained['state_bytes'] / 1e6:,.0f} MB per device; {full:,.0f} MB if all were trained")
  table.add_row("devices", f"{report['devices']} ({report['topology']}, {report['num_slices']} slice(s)), mesh {mesh}")
  table.add_row(
    "batch", f"{report['batch']} x {report['length']} tokens, {report['batch_per_device']:g} rows per device"
  )
  verdict = "fits" if report["fits"] else "DOES NOT FIT"
  table.add_row("memory per device", f"{size['total']} of {size['capacity']}: {verdict}")
  parts = f"{size['arguments']} arguments + {size['temporaries']} temporaries + {size['output']} output"
  table.add_row("", f"{parts} ({report['method']}, {report['compile_seconds']} s)")
  if "would_fit" in report:
    table.add_row("what would fit", " or ".join(report["would_fit"]) or "nothing that was tried; use more devices")
  flops = report["flops_per_step"]
  table.add_row("FLOPs per step", f"{flops['full_attention']:.4g}, causal {flops['causal_attention']:.4g}")
  table.add_row("", flops["formula"])
  for kind, moved in (report["collectives"] or {}).items():
    beside = f"; {moved['beside_bytes'] / moved['bytes']:.0%} while the device computes" if moved["bytes"] else ""
    table.add_row(kind, f"{moved['bytes'] / 1e9:,.2f} GB per device and step, in {moved['count']:,.0f} calls{beside}")
  if report["collectives"] is None:
    reason = "the step does not fit" if report["method"] == "compiled" else "the step is not compiled"
    table.add_row("collectives", f"unknown: {reason}")
  for name, part in report.get("parts", {}).items():
    verdict = "fits" if part["fits"] else "DOES NOT FIT"
    times = f"{part['per_rollout']} x at least {part['seconds']:.3f} s, bound by {part['bound_by']}"
    table.add_row(name, f"{part['bytes_per_device'] / 1e6:,.0f} MB per device: {verdict}; in a rollout {times}")
  if report["seconds_per_step"] is not None:
    each = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in report["seconds_of"].items())
    shared = " with its share of a rollout; alone" if "parts" in report else ","
    table.add_row("step", f"at least {report['seconds_per_step']:.3f} s{shared} bound by {report['bound_by']} ({each})")
    bound = report["utilisation_bound"]
    table.add_row("utilisation", f"at most {bound['full_attention']:.1%}, causal {bound['causal_attention']:.1%}")
  _add_run(table, report["run"])
  return table


def decoding_table(report: dict[str, Any]) -> Table:
  """Returns the table of a report of `planning.decoding`."""
  table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
  held = f"a cache of {report['length']:,} tokens" if report["length"] else "a state"
  held += f", a source of {report['source']:,} tokens" if report["source"] else ""
  table.add_row("device", f"{report['topology']}, {report['batch']} rows, {held}, bfloat16")
  verdict = "fits" if report["fits"] else "DOES NOT FIT"
  capacity = f" of {report['capacity'] / 1e6:,.0f} MB: {verdict}" if report["capacity"] else ""
  parts = " + ".join(f"{size / 1e6:,.1f} MB {name}" for name, size in report["bytes"].items())
  table.add_row("memory", f"{report['total'] / 1e6:,.1f} MB{capacity}")
  table.add_row("", f"{parts} ({report['method']})")
  if report["accessed"]:
    megabytes = f"{report['accessed'] / 1e6:,.1f} MB"
    table.add_row("operations", f"read and write {megabytes} a token, copies inside the chip included")
  if report["seconds"]:
    rate = f"{report['batch'] / report['seconds']:,.0f} tokens/s"
    table.add_row(
      "reading", f"all weights and the cache takes {1e3 * report['seconds']:.3f} ms: {rate}, if each is read once"
    )
  return table


def _add_run(table: Table, run: dict[str, Any]) -> None:
  table.add_row("run", f"{run['steps']:,} steps, {run['tokens']:,} tokens")
  if run["hours"] is not None:
    costs = {"kWh": run["kwh"], "kg CO2e": run["co2e_kg"], "lb CO2e": run["co2e_lb"], "dollars": run["cost_usd"]}
    cells = [f"{run['hours']:,.1f} hours", f"{run['device_hours']:,.0f} device hours"]
    cells += [f"{value:,.0f} {unit}" for unit, value in costs.items() if value is not None]
    table.add_row("", ", ".join(cells))
  for name, assumption in run["assumptions"].items():
    table.add_row(f"  {name}", assumption, style="dim")


def strubell_table(rows: list[dict[str, Any]]) -> Table:
  """Returns the table of `planning.energy.strubell_rows`: in each pair of columns, published and recomputed."""
  table = Table(
    box=None, header_style="bold", padding=(0, 2, 0, 0), title="published, then recomputed", title_justify="left"
  )
  for name in ("model", "hardware", "watts", "hours", "kWh", "", "CO2e lb", "", "dollars", ""):
    table.add_column(name, justify="left" if name in ("model", "hardware") else "right")
  for row in rows:
    cells = [row["model"], row["hardware"], f"{row['watts']:,.2f}" if row["watts"] else "-", f"{row['hours']:,}"]
    columns = (row["published"], row["recomputed"])
    for key in ("kwh", "co2e_lb"):
      cells += ["-" if column[key] is None else f"{column[key]:,.0f}" for column in columns]
    cells += ["-".join(f"{dollars:,.0f}" for dollars in column["usd"]) for column in columns]
    table.add_row(*cells)
  return table


def trend_table(rows: list[dict[str, Any]]) -> Table:
  """Returns the table of `planning.trend.trend_rows`; what was not published stays empty."""
  table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
  left = ("date", "model", "arXiv", "hardware")
  for name in ("date", "model", "arXiv", "parameters", "preset", "tokens", "FLOPs, 6ND", "hardware", "MWh", "t CO2e"):
    table.add_column(name, justify="left" if name in left else "right")
  for row in rows:
    size, tokens, count = row["parameters"], row["tokens"], row["preset_parameters"]
    cells = [row["date"], row["name"], row["paper"], f"{size / 1e9:,.1f} B" if size >= 1e9 else f"{size / 1e6:,.0f} M"]
    cells += [f"{count:,}" if count else "", f"{tokens / 1e9:,.0f} B" if tokens else ""]
    cells += [f"{row['flops']:.2e}" if row["flops"] else "", row["hardware"]]
    energy = (row["mwh"], row["tonnes"])
    table.add_row(*cells, *("" if x is None else f"{x:,.3g}" if x < 100 else f"{x:,.0f}" for x in energy))
  return table
