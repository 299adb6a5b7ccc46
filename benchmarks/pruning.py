"""Accuracy against sparsity: a fine-tuned encoder whose kernels lose values while it learns, and after it.

    python benchmarks/pruning.py --start MINILM --data glue_sst2 --workdir runs/pruning --plot pruning.png

SST-2 (Socher et al., 2013), one epoch of 10,000 sentences, by magnitude (Zhu and Gupta, 2017, arXiv:1710.01878),
movement (Sanh et al., 2020, arXiv:2005.07683) and at random; and the dense runs of the same seeds without further
training, by magnitude and at random. Every run is `lmjax seeds`, every copy `lmjax compress`: both are in `--workdir`,
and the same command goes on where it was stopped. Prints a JSON line a point; draws means and deviations.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np

STEPS, WARMUP = 313, 31
SETTINGS = {
  "steps": STEPS,
  "optim.peak_lr": 1e-4,
  "optim.warmup": WARMUP,
  "data.source.split": ":14.848%",  # of 67,349 sentences
  "data.source.shuffle": True,
  "evals.every": STEPS,  # the last step counts, which alone has the whole sparsity
  "checkpoint.every": STEPS,
}
SCHEDULE = {"transform.begin": WARMUP, "transform.end": 220, "transform.every": 10}
COLORS = {"magnitude": "#0072B2", "movement": "#D55E00", "random": "#009E73"}


def lmjax(*arguments: str) -> None:
  subprocess.run([sys.executable, "-m", "lmjax", *arguments], check=True, stdout=sys.stderr)


def trained(options: argparse.Namespace, name: str, **transform: object) -> list[float]:
  """Returns the accuracy of each seed after training with masks."""
  folder, settings = pathlib.Path(options.workdir, name), SETTINGS | (SCHEDULE if transform else {})
  settings |= {f"transform.{key}": value for key, value in transform.items()}
  file = folder / "seeds.json"
  if not file.exists() or len(json.loads(file.read_text())["runs"]) < options.seeds:
    given = [f"--config.{key}={value}" for key, value in settings.items()]
    base = f"configs/glue.py:task=sst2,start={options.start},data={options.data}"
    lmjax("seeds", "--config", base, "--workdir", str(folder), "--seeds", f"0:{options.seeds}", *given)
  runs = json.loads(file.read_text())["runs"]
  return [run["dev_accuracy"] for run in list(runs.values())[: options.seeds]]


def cut(options: argparse.Namespace, score: str, sparsity: float) -> list[float]:
  """Returns the accuracy of the dense run of each seed whose lowest values became zero."""
  accuracies = []
  for seed in range(options.seeds):
    name = pathlib.Path(options.workdir, f"cut-{score}-{sparsity:g}", str(seed))
    report = name.with_suffix(".json")
    if not report.exists():
      name.parent.mkdir(parents=True, exist_ok=True)
      shutil.rmtree(name, ignore_errors=True)  # a copy that was not measured
      run = pathlib.Path(options.workdir, "dense", str(seed))
      by = ["--prune", score, "--sparsity", f"{sparsity:g}"] + ["--seed", str(seed)] * (score == "random")
      lmjax("compress", "--workdir", str(run), "--output", str(name), *by, "--measure", "evaluation", "--report",
            str(report))  # fmt: skip
    accuracies.append(json.loads(report.read_text())["evaluation"]["dev_accuracy"][1])
  return accuracies


def draw(path: str, dense: list[float], points: dict[tuple[str, bool], dict[float, list[float]]]) -> None:
  figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
  for (score, fine_tuned), by_sparsity in points.items():
    values = [dense, *by_sparsity.values()]
    deviations = [np.std(each, ddof=min(len(each) - 1, 1)) for each in values]
    axes.errorbar(
      [0, *by_sparsity], [np.mean(each) for each in values], deviations,
      color=COLORS[score], linestyle="-" if fine_tuned else "--", marker="o" if fine_tuned else "x", capsize=2,
      label=score if fine_tuned else f"{score}, not trained after",
    )  # fmt: skip
  axes.axhline(0.509, color="0.5", linewidth=0.8, linestyle=":")
  axes.set(xlabel="fraction of kernels' values that are zero", ylabel="accuracy on SST-2's dev set")
  axes.legend(frameon=False, fontsize=8)
  figure.savefig(path, dpi=120)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--start", required=True, help="the saved encoder")
  parser.add_argument("--data", required=True, help="the folder of SST-2")
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--plot", default="pruning.png")
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--sparsities", type=float, nargs="+", default=[0.5, 0.7, 0.9, 0.97])
  options = parser.parse_args()
  prune = "lmjax.compression.prune:Prune"
  dense = trained(options, "dense")
  print(json.dumps({"sparsity": 0, "accuracy": dense}), flush=True)
  points: dict[tuple[str, bool], dict[float, list[float]]] = {}
  for sparsity in options.sparsities:
    for score in COLORS:
      for fine_tuned in (True, False):
        if score == "movement" and not fine_tuned:
          continue  # its scores are of training
        name = f"{score}-{sparsity:g}"
        accuracy = (
          trained(options, name, kind=prune, score=score, sparsity=sparsity)
          if fine_tuned
          else cut(options, score, sparsity)
        )
        points.setdefault((score, fine_tuned), {})[sparsity] = accuracy
        line = {"sparsity": sparsity, "score": score, "fine_tuned": fine_tuned, "accuracy": accuracy}
        print(json.dumps(line), flush=True)
    draw(options.plot, dense, points)


if __name__ == "__main__":
  main()
