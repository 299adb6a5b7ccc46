"""One HTML page about one run or several side by side, which needs no other file and no network."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from etils import epath

from lmjax.evals.suites.page import STYLE, interval_plot
from lmjax.logs import read_metrics
from lmjax.utils import files
from lmjax.utils.errors import UserError

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b")
WIDTH, HEIGHT, MARGIN = 420, 220, 44  # of the plot of a metric
CURVES = ("train_loss", "validation_loss", "gradient_norm", "learning_rate", "tokens_per_second")  # the first ones
MOST_CURVES = 12
POINTS = 1000  # of a curve, at most
HEAD = (
  '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" '
  "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">"
  '<link rel="icon" href="data:,"><title>Report</title>'
)


def render(folders: Sequence[epath.PathLike]) -> str:
  """Returns the page of some run folders: config differences, curves, evaluations, time, energy.

  Raises:
    UserError: a folder is not a run folder, or a file in it cannot be read.
  """
  paths = [files.expand(folder) for folder in folders]
  for path in paths:
    if not (path / "config.json").exists() or not (path / "metrics.jsonl").exists():
      raise UserError(f"report: {path} is not a run folder: it has no config.json and metrics.jsonl")
  names = [str(folder) for folder in folders]
  sections = [
    ("Runs", _table(["", *names], _facts([_summary(path) for path in paths]))),
    ("Config" if len(paths) == 1 else "Config: differences", _config(names, paths)),
    ("Curves", _curves(names, [read_metrics(path) for path in paths])),
    ("Evaluations", _evaluations(names, paths)),
  ]
  body = "".join(f"<h2>{title}</h2>{content}" for title, content in sections if content)
  return f"{HEAD}<style>{STYLE}</style></head><body><h1>Report</h1>{_legend(names)}{body}</body></html>\n"


def _summary(path: epath.Path) -> dict[str, Any]:
  file = path / "summary.json"
  return files.read_json(file) if file.exists() else {"finished": "no"}


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
  rows: dict[tuple[str, str], list[str]] = {}
  for number, path in enumerate(paths):
    for file in sorted([*path.glob("results.json"), *path.glob("*/results.json")]):
      for task, result in files.read_json(file).get("tasks", {}).items():
        for metric, score in result.get("metrics", {}).items():
          cells = rows.setdefault((task, metric), [""] * len(paths))
          plot = interval_plot(score) if min(score.values()) >= 0 and max(score.values()) <= 1 else ""
          cells[number] = f"{score['value']:.4f} ({score['low']:.4f} to {score['high']:.4f}){plot}"
  body = "".join(
    f"<tr><td>{escape(f'{task} {metric}')}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    for (task, metric), cells in rows.items()
  )
  head = "".join(f"<th>{escape(name)}</th>" for name in ("", *names))
  return f"<table><tr>{head}</tr>{body}</table>" if rows else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  lines = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
  lines += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
  return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


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
