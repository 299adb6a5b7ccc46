"""Plots of the metrics of runs: loss.png, and those in notebooks; the first host of a run imports it."""

import itertools
from collections.abc import Sequence
from typing import Any

from etils import epath
from matplotlib.figure import Figure

from lmjax.utils import files

# Distinguishable with every kind of colour vision (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
CURVES = ("train_loss", "validation_loss")  # of loss.png


def draw_curves(axes: Any, runs: dict[str, list[dict[str, float]]], keys: Sequence[str] = CURVES) -> None:
  """Draws metrics over steps, of one run or of several by their names: with the same labels and colours everywhere."""
  colours = itertools.cycle(COLOURS)
  for (run, lines), key in itertools.product(runs.items(), keys):
    steps, values = [line["step"] for line in lines if key in line], [line[key] for line in lines if key in line]
    style = "-" if len(steps) > 40 else "o-"
    axes.plot(steps, values, style, color=next(colours), label=f"{run} {key}".strip(), markersize=4, linewidth=1.2)
  axes.set(xlabel="step", ylabel="nats per token" if set(keys) <= set(CURVES) else "")
  axes.grid(alpha=0.3)
  axes.legend(frameon=False)


def save_curves(runs: dict[str, list[dict[str, float]]], path: epath.PathLike) -> None:
  """Writes a PNG file with the losses of several runs, by their names."""
  figure = Figure(figsize=(9, 5), layout="constrained")
  draw_curves(figure.subplots(), runs)
  with files.replacing(path) as file:
    figure.savefig(file, format="png", dpi=120)


def plot(lines: list[dict[str, float]], workdir: epath.Path) -> None:
  """Writes loss.png: training and validation loss over steps."""
  figure = Figure(figsize=(7, 4), layout="constrained")
  axes = figure.subplots()
  axes.set_title(workdir.name, parse_math=False)
  draw_curves(axes, {"": lines})
  with files.replacing(workdir / "loss.png") as file:
    figure.savefig(file, format="png", dpi=120)
