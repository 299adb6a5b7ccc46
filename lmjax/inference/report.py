"""One HTML page about one run or several side by side, which needs no other file and no network."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from etils import epath

from lmjax.evals.suites.page import STYLE, interval_plot
from lmjax.logs import read_metrics
from lmjax.planning.energy import KILOGRAMS_PER_POUND, POUNDS_PER_KWH
from lmjax.planning.hardware import CHIPS, PRICED
from lmjax.utils import files
from lmjax.utils.errors import UserError, reason

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b")
WIDTH, HEIGHT, MARGIN = 420, 220, 44  # of the plot of a metric
CURVES = ("train_loss", "validation_loss", "gradient_norm", "learning_rate", "tokens_per_second")  # the first ones
MOST_CURVES = 12
POINTS = 1000  # of a curve, at most
MOST_SAMPLES = 12  # steps whose samples are shown: the first, the last and some between them
BAR = 600  # width of the split of the time
WRAP = "\ntable.samples td { white-space: pre-wrap; vertical-align: top; overflow-wrap: anywhere }"
HEAD = (
  '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" '
  "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">"
  '<link rel="icon" href="data:,"><title>Report</title>'
)


def render(folders: Sequence[epath.PathLike], price: float | None = None) -> str:
  """Returns the page of some run folders: config differences, curves, samples, evaluations, time, energy, cost.

  Args:
    price: dollars per device and hour; by default the listed ones of the devices.

  Raises:
    UserError: a folder is not a run folder, or a file in it cannot be read.
  """
  paths = [files.expand(folder) for folder in folders]
  for path in paths:
    if not (path / "config.json").exists() or not (path / "metrics.jsonl").exists():
      raise UserError(f"report: {path} is not a run folder: it has no config.json and metrics.jsonl")
  names = [str(folder) for folder in folders]
  summaries = [_summary(path) for path in paths]
  spent = [_spent(summary, price) for summary in summaries]
  numbers = [{key: value for key, value in summary.items() if key not in SPENT} for summary in summaries]
  sections = [
    ("Runs", _table(["", *names], _facts(numbers))),
    ("Time, energy and cost", _times(names, summaries) + _table(["", *names], _facts(spent))),
    ("Config" if len(paths) == 1 else "Config: differences", _config(names, paths)),
    ("Curves", _curves(names, [read_metrics(path) for path in paths])),
    ("Samples", _samples(names, [read_metrics(path, samples=True) for path in paths])),
    ("Evaluations", _evaluations(names, paths)),
  ]
  body = "".join(f"<h2>{title}</h2>{content}" for title, content in sections if content)
  return f"{HEAD}<style>{STYLE}{WRAP}</style></head><body><h1>Report</h1>{_legend(names)}{body}</body></html>\n"


def _summary(path: epath.Path) -> dict[str, Any]:
  file = path / "summary.json"
  return files.read_json(file) if file.exists() else {"finished": "no"}


SPENT = ("seconds", "time", "energy_kwh", "energy_method", "devices")  # of a summary, in a section of their own


def _spent(summary: Mapping[str, Any], price: float | None) -> dict[str, Any]:
  """Returns the time, energy, emissions and cost of a run, as far as they are known."""
  spent = {key: summary[key] for key in SPENT if key in summary}
  seconds, kwh, devices = (summary.get(key) for key in ("seconds", "energy_kwh", "devices"))
  if _is_number(kwh):
    spent["CO2e, kg"] = kwh * POUNDS_PER_KWH * KILOGRAMS_PER_POUND
  count, _, kind = str(devices or "").partition(" x ")
  chips = sorted((chip for chip in CHIPS.values() if chip.kind in kind), key=lambda chip: -len(chip.kind))
  listed = chips[0].price if chips and price is None else None
  rate = listed if price is None else price
  if count.isdecimal() and _is_number(seconds):
    spent["cost, dollars"] = "not known for this device; set --price" if rate is None else (
      int(count) * seconds / 3600 * rate
    )  # fmt: skip
    if rate is not None:
      of = f", of {PRICED}" if listed else ""
      spent["price, dollars per device and hour"] = f"{rate:g}{of}"
  return spent


def _times(names: Sequence[str], summaries: Sequence[Mapping[str, Any]]) -> str:
  """Returns a bar for each run: how the time was spent."""
  splits = []
  for summary in summaries:
    parts = summary.get("time")
    known = {key: value for key, value in parts.items() if _is_number(value)} if isinstance(parts, Mapping) else {}
    total = summary.get("seconds")
    rest = total - sum(known.values()) if _is_number(total) else 0
    splits.append(known | ({"other": rest} if known and rest > 0 else {}))
  keys = list(dict.fromkeys(key for split in splits for key in split))
  colours = {key: COLOURS[number % len(COLOURS)] for number, key in enumerate(keys)}
  most, bars = max((sum(split.values()) for split in splits), default=0), ""
  for name, split in zip(names, splits, strict=True):
    at, drawn = 0.0, ""
    for key, value in split.items():
      width = BAR * value / (most or 1)
      drawn += f'<rect x="{at:.1f}" y="2" width="{width:.1f}" height="14" fill="{colours[key]}">'
      drawn += f"<title>{escape(key)} {value:g} s</title></rect>"
      at += width
    bars += f'<p>{escape(name)}<svg width="{BAR}" height="18">{drawn}</svg></p>' if split else ""
  return _legend(keys) + bars if bars else ""


def _samples(names: Sequence[str], runs: Sequence[Sequence[Mapping[str, Any]]]) -> str:
  """Returns what each run generated, by step."""
  by_step: dict[int, list[str]] = {}
  for number, run in enumerate(runs):
    for line in run:
      if "samples" in line:
        cells = by_step.setdefault(line["step"], [""] * len(runs))
        cells[number] = "\n\n".join(str(text).strip() for text in line["samples"])
  steps = sorted(by_step)
  most = min(MOST_SAMPLES, len(steps))
  chosen = [steps[i * (len(steps) - 1) // max(most - 1, 1)] for i in range(most)]
  return _table(["step", *names], [[f"{step:,}", *by_step[step]] for step in chosen], "samples") if chosen else ""


def _facts(summaries: Sequence[Mapping[str, Any]]) -> list[list[str]]:
  """Returns the rows of what summaries have: numbers, the split of the time, energy."""
  flat = [dict(_leaves(summary)) for summary in summaries]
  keys = list(dict.fromkeys(key for facts in flat for key in facts))
  return [[key.replace("/", ": "), *(_text(facts.get(key)) for facts in flat)] for key in keys]


def _leaves(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
  leaves = []
  for key, value in values.items():
    if isinstance(value, Mapping) and value:
      leaves += _leaves(value, f"{prefix}{key}/")
    else:
      leaves.append((f"{prefix}{key}", value))
  return leaves


def _config(names: Sequence[str], paths: Sequence[epath.Path]) -> str:
  configs = [dict(_leaves(files.read_json(path / "config.json"))) for path in paths]
  keys = list(dict.fromkeys(key for config in configs for key in config))
  texts = {key: [json.dumps(config[key]) if key in config else "-" for config in configs] for key in keys}
  different = [[key.replace("/", "."), *values] for key, values in texts.items() if len({*values}) > 1]
  if len(paths) > 1:
    return _table(["", *names], different) if different else "<p>The configs are equal.</p>"
  rows = _table(["", *names], [[key.replace("/", "."), *values] for key, values in texts.items()])
  return f"<details><summary>{len(texts)} keys</summary>{rows}</details>"


def _curves(names: Sequence[str], runs: Sequence[Sequence[Mapping[str, Any]]]) -> str:
  lines = [line for run in runs for line in run]
  keys = [key for key, value in {key: v for line in lines for key, v in line.items()}.items() if _is_number(value)]
  ordered = sorted((key for key in keys if key != "step"), key=lambda k: (CURVES + (k,)).index(k))[:MOST_CURVES]
  return "".join(_plot(key, [_points(run, key) for run in runs]) for key in ordered)


def _points(run: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
  points = [(line["step"], line[key]) for line in run if _is_number(line.get(key))]
  return points[:: -(-len(points) // POINTS) or 1]


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _plot(title: str, curves: Sequence[Sequence[tuple[float, float]]]) -> str:
  """Returns a metric of each run by step."""
  every = [point for curve in curves for point in curve]
  (x0, x1), (y0, y1) = ((min(axis), max(axis)) for axis in zip(*every, strict=True))

  def place(x: float, y: float) -> str:
    across, up = (x - x0) / ((x1 - x0) or 1), (y - y0) / ((y1 - y0) or 1)
    return f"{MARGIN + across * (WIDTH - MARGIN - 10):.1f},{HEIGHT - 24 - up * (HEIGHT - 44):.1f}"

  drawn = ""
  for number, curve in enumerate(curves):
    colour, places = COLOURS[number % len(COLOURS)], [place(*point) for point in curve]
    drawn += f'<polyline points="{" ".join(places)}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
    if len(places) == 1:
      x, y = places[0].split(",")
      drawn += f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>'
  marks = f'<text x="2" y="24">{y1:.4g}</text><text x="2" y="{HEIGHT - 24}">{y0:.4g}</text>'
  marks += (
    f'<text x="{MARGIN}" y="{HEIGHT - 6}">{x0:g}</text><text x="{WIDTH - 60}" y="{HEIGHT - 6}">step {x1:g}</text>'
  )
  name = f'<text x="{MARGIN}" y="12">{escape(title)}</text>'
  return f'<svg width="{WIDTH}" height="{HEIGHT}" style="display: inline-block">{name}{marks}{drawn}</svg>'


def _evaluations(names: Sequence[str], paths: Sequence[epath.Path]) -> str:
  """Returns the scores of the suites whose results are in the run folders, or in folders in them, side by side."""
  rows: dict[str, list[str]] = {}
  for number, path in enumerate(paths):
    for file in sorted([*path.glob("results.json"), *path.glob("*/results.json")]):
      results = files.read_json(file)
      try:
        for name, score in _scores(results):
          plot = interval_plot(score) if min(score.values()) >= 0 and max(score.values()) <= 1 else ""
          cell = f"{score['value']:.4f} ({score['low']:.4f} to {score['high']:.4f}){plot}"
          rows.setdefault(name, [""] * len(paths))[number] = cell
      except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"report: {file} has not the form of a suite's results: {reason(error)}") from error
  body = "".join(
    f"<tr><td>{escape(name)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" for name, cells in rows.items()
  )
  head = "".join(f"<th>{escape(name)}</th>" for name in ("", *names))
  return f"<table><tr>{head}</tr>{body}</table>" if rows else ""


def _scores(results: Mapping[str, Any]) -> list[tuple[str, dict[str, float]]]:
  """Returns the names of all scores of a suite, and their values with intervals: of groups, tasks and parts of them."""
  scores = []
  for name, group in results.get("groups", {}).items():
    scores += [(f"{name}, mean of {group['tasks']} tasks {metric}", s) for metric, s in group["metrics"].items()]
  for task, result in results.get("tasks", {}).items():
    scores += [(f"{task} {metric}", score) for metric, score in result.get("metrics", {}).items()]
    scores += [(f"{task}, {part}", score) for part, score in result.get("by", {}).items()]
  return [(name, {key: score[key] for key in ("value", "low", "high")}) for name, score in scores]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
  lines = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
  lines += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
  return f"<table class='{kind}'>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _legend(names: Sequence[str]) -> str:
  return "".join(
    f'<p><svg width="14" height="14" style="display: inline"><circle cx="7" cy="7" r="6" '
    f'fill="{COLOURS[number % len(COLOURS)]}"/></svg> {escape(name)}</p>'
    for number, name in enumerate(names)
  )


def _text(value: Any) -> str:
  if value is None:
    return "-"
  return f"{value:,.6g}" if isinstance(value, float) else str(value)
