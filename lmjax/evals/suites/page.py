"""Results of suites as one HTML page that needs no other file and no network."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lmjax.evals.suites.task_files import CORPUS_METRICS

STYLE = """body { font: 15px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 60em; padding: 0 1em; color: #222 }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .25em .6em }
th { border-bottom: 2px solid #888 } td { border-bottom: 1px solid #ddd } td.number { text-align: right }
tr.part td { color: #666 } svg { display: block } text { font: 11px system-ui, sans-serif; fill: #444 }"""
WIDTH, HEIGHT = 220, 18  # of the plot of one score
SIDE = 240  # of a reliability plot

Bins = Sequence[tuple[float, float, int]]  # mean confidence, accuracy, items


def render(title: str, results: Mapping[str, Any], bins: Mapping[str, Bins]) -> str:
  """Returns the page of the results of `inference.suite.evaluate`.

  bins: of the reliability plots, by task.
  """
  facts = {key: results.get(key) for key in ("version", "model", "step")}
  defaults = {"shots": "those of each task", "limit": "all items"}
  facts |= {key: default if results.get(key) is None else results[key] for key, default in defaults.items()}
  lines = [f"<tr><th>{escape(key)}</th><td>{escape(str(value))}</td></tr>" for key, value in facts.items()]
  plots = "".join(f"<h3>{escape(name)}</h3>{reliability(task_bins)}" for name, task_bins in bins.items())
  calibration = f"<h2>Calibration</h2><p>Accuracy by confidence; the diagonal is perfect calibration.</p>{plots}"
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
    'img-src data:">'
    f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{STYLE}</style></head><body>'
    f"<h1>{escape(title)}</h1><table>{''.join(lines)}</table><h2>Scores</h2>"
    "<table><tr><th>task</th><th>items</th><th>metric</th><th>value</th><th>95 % interval</th><th></th></tr>"
    f"{''.join(_rows(results))}</table>{calibration if plots else ''}</body></html>\n"
  )


def _rows(results: Mapping[str, Any]) -> list[str]:
  rows = []
  for name, group in results.get("groups", {}).items():
    for metric, score in group["metrics"].items():
      rows.append(_row(f"{name}, mean of {group['tasks']} tasks", "", metric, score, ""))
  for name, result in results["tasks"].items():
    for metric, score in result["metrics"].items():
      rows.append(_row(name, result["items"], metric, score, ""))
    for part, score in result["by"].items():
      rows.append(_row(part, score["items"], "acc", score, "part"))
    if score := result.get("min_k"):
      rows.append(_row("Min-K %", "", f"{score['percent']:g} %, log p", score, "part"))
    if (score := result.get("memorisation", {})).get("windows"):
      rows.append(_row("verbatim in the corpus", score["windows"], "windows", score, "part"))
    overlap = result.get("contamination", {})
    for part in ("clean", "dirty", "difference") if overlap else ():
      for metric, score in overlap["metrics"].get(part, {}).items():
        rows.append(_row(f"{name}, {part}", overlap.get(part, ""), metric, score, "part"))
  for name, result in results.get("templates", {}).items():
    for metric, score in result["metrics"].items():
      worst = {"value": score["mean"], "low": min(score["values"]), "high": max(score["values"])}
      rows.append(_row(f"{name}, {result['templates']} templates, range", "", metric, worst, ""))
  return rows


def _row(name: str, items: Any, metric: str, score: Mapping[str, float], kind: str) -> str:
  limits = f"{score['low']:.4f} to {score['high']:.4f}"
  cells = f"<td>{escape(str(name))}</td><td class=number>{items}</td><td>{escape(metric)}</td>"
  cells += f"<td class=number>{score['value']:.4f}</td><td>{limits}</td>"
  plotted = score["low"] >= 0 and score["high"] <= 1 and metric not in CORPUS_METRICS
  return f"<tr class='{kind}'>{cells}<td>{interval_plot(score) if plotted else ''}</td></tr>"


def interval_plot(score: Mapping[str, float]) -> str:
  """Returns a score between 0 and 1 as a point on a line, with its interval."""
  x = {key: 4 + score[key] * (WIDTH - 8) for key in ("value", "low", "high")}
  middle = HEIGHT / 2
  return (
    f'<svg width="{WIDTH}" height="{HEIGHT}"><line x1="4" x2="{WIDTH - 4}" y1="{middle}" y2="{middle}" stroke="#ddd"/>'
    f'<line x1="{x["low"]:.1f}" x2="{x["high"]:.1f}" y1="{middle}" y2="{middle}" stroke="#1f77b4" stroke-width="3"/>'
    f'<circle cx="{x["value"]:.1f}" cy="{middle}" r="4" fill="#1f77b4"/></svg>'
  )


def reliability(bins: Bins) -> str:
  """Returns accuracy against confidence; the area of a point grows with the items of its bin."""
  total = max(sum(count for _, _, count in bins), 1)
  margin, size = 34, SIDE - 44

  def place(x: float, y: float) -> tuple[float, float]:
    return margin + x * size, 10 + (1 - y) * size

  points = "".join(
    f'<circle cx="{place(x, y)[0]:.1f}" cy="{place(x, y)[1]:.1f}" r="{3 + 12 * (count / total) ** 0.5:.1f}" '
    f'fill="#1f77b4" fill-opacity="0.6"><title>{count} items</title></circle>'
    for x, y, count in bins
  )
  (x0, y0), (x1, y1) = place(0, 0), place(1, 1)
  ticks = "".join(
    f'<text x="{place(value, 0)[0] - 8:.1f}" y="{y0 + 14:.1f}">{value}</text>'
    f'<text x="6" y="{place(0, value)[1] + 4:.1f}">{value}</text>'
    for value in (0.0, 0.5, 1.0)
  )
  return (
    f'<svg width="{SIDE}" height="{SIDE}"><rect x="{x0}" y="{y1}" width="{size}" height="{size}" fill="none" '
    f'stroke="#888"/><line x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}" stroke="#bbb"/>{points}{ticks}'
    f'<text x="{x0 + size / 2 - 30}" y="{SIDE - 4}">confidence</text></svg>'
  )
