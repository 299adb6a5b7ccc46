"""Policies on a task with a known optimum, and a reward that can be hacked, held by the KL term; curves with bands.

    python -m benchmarks.optimum --workdir runs/optimum --plot optimum.png

The policies, prompts and rewards are those of tests/tasks/rl/test_optimum.py: answers of vowels alone get 1, or longer
answers more. Finished curves are kept in WORKDIR and not repeated. Prints a JSON line a curve; bands are one standard
deviation of the seeds.
"""

import argparse
import json
import pathlib
import time
from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np

from lmjax.curves import COLOURS
from lmjax.utils.memory import keep_memory
from tests.tasks.rl.test_optimum import METHODS, learn, long_answers

LENGTH = {"without the KL term": 0.0, "kl=1": 1.0}  # its coefficient, of RLOO with the reward for length
Curves = list[list[dict[str, float]]]  # the metrics of each rollout, of each seed


def curves(workdir: pathlib.Path, name: str, seeds: int, run: Callable[[int], list[dict]]) -> Curves:
  """Returns the metrics of a run's rollouts for each seed, and prints what they came to."""
  runs, start = [], time.perf_counter()
  for seed in range(seeds):
    file = workdir / f"{name}-{seed}.json"
    if not file.exists():
      lines = [{key: float(line[key]) for key in ("reward", "kl", "entropy")} for line in run(seed)]
      file.write_text(json.dumps(lines))
    runs.append(json.loads(file.read_text()))
  last = [round(float(np.mean([line["reward"] for line in lines[-5:]])), 4) for lines in runs]
  most = [round(max(line["kl"] for line in lines), 3) for lines in runs]
  report = {"curve": name, "reward": last, "largest_kl": most, "seconds": round(time.perf_counter() - start)}
  print(json.dumps(report), flush=True)
  return runs


def draw(axes, key: str, lines: dict[str, Curves]) -> None:
  for colour, (name, runs) in zip(COLOURS, lines.items(), strict=False):
    values = np.array([[line[key] for line in run] for run in runs])
    mean, deviation, rollouts = values.mean(0), values.std(0, ddof=1), 1 + np.arange(values.shape[1])
    axes.plot(rollouts, mean, color=colour, label=name)
    axes.fill_between(rollouts, mean - deviation, mean + deviation, color=colour, alpha=0.2, linewidth=0)
  axes.set_xlabel("rollout")
  axes.grid(alpha=0.3)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", required=True, type=pathlib.Path)
  parser.add_argument("--plot", default="optimum.png")
  parser.add_argument("--seeds", type=int, default=5)
  options = parser.parse_args()
  keep_memory()
  options.workdir.mkdir(parents=True, exist_ok=True)
  best = {
    name: curves(options.workdir, name, options.seeds, lambda seed, name=name: learn(name, seed)) for name in METHODS
  }
  hacked = {
    name: curves(
      options.workdir, f"length-{kl:g}", options.seeds, lambda seed, kl=kl: learn("rloo", seed, 40, long_answers, kl=kl)
    )
    for name, kl in LENGTH.items()
  }
  figure, axes = plt.subplots(2, 2, figsize=(9, 6), layout="constrained", sharex="col")
  for column, lines in enumerate((best, hacked)):
    draw(axes[0, column], "reward", lines)
    draw(axes[1, column], "kl", lines)
    axes[0, column].legend(frameon=False)
    axes[1, column].set_yscale("symlog", linthresh=0.1)
  axes[0, 0].set(title="reward: the fraction of vowels", ylabel="reward")
  axes[0, 0].axhline(0.95, color="0.5", linewidth=0.8, linestyle=":")
  axes[0, 1].set_title("reward: a tenth of the characters")
  axes[1, 0].set_ylabel("KL of an answer to the reference, nats")
  figure.savefig(options.plot, dpi=120)


if __name__ == "__main__":
  main()
