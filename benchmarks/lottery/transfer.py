"""Tickets in a pretrained encoder, each tried on the other's task (Chen et al., 2020, arXiv:2007.12223).

    python benchmarks/lottery/transfer.py --start MINILM --sst2 glue_sst2 --stsb glue_stsb --workdir runs/transfer

Finds a mask on SST-2 (10,000 sentences) and one on STS-B: three rounds that each remove 30 % of the encoder's kernels,
from the pretrained weights. Then trains the pretrained weights on each target with either mask, with a random one of
as many weights, and without. The same command goes on where it was stopped. Prints a JSON line a cell.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys

ROUNDS, RATE, KERNELS = 3, 0.3, "^model/.*kernel$"
STEPS = {"sst2": 313, "stsb": 359}
SETTINGS = {"optim.peak_lr": 1e-4, "optim.warmup": 31, "log.every": 100}
SUBSET = {"data.source.split": ":14.848%", "data.source.shuffle": True}  # 10,000 of 67,349 sentences
METRICS = {"sst2": "dev_accuracy", "stsb": "dev_spearman"}
KEEP_ZEROS = {"transform.kind": "lmjax.compression.keep_zeros:KeepZeros"}


def lmjax(*arguments: str) -> None:
  subprocess.run([sys.executable, "-m", "lmjax", *arguments], check=True, stdout=sys.stderr)


def config(options: argparse.Namespace, task: str, start: pathlib.Path | str) -> list[str]:
  """Returns the options that name the config of a task and its settings; the last step counts."""
  steps = STEPS[task]
  settings = {"steps": steps, "evals.every": steps, "checkpoint.every": steps} | SETTINGS
  settings |= SUBSET if task == "sst2" else {}
  base = f"configs/glue.py:task={task},start={start},data={getattr(options, task)}"
  return ["--config", base, *(f"--config.{key}={value}" for key, value in settings.items())]


def find_ticket(options: argparse.Namespace, task: str) -> pathlib.Path:
  """Returns the run of the last round on a task."""
  folder = options.workdir / f"ticket-{task}"
  last = folder / "0" / str(ROUNDS) / "ticket"
  if not (folder / "lottery.png").exists():
    lmjax("lottery", *config(options, task, options.start), "--workdir", str(folder), "--rounds", str(ROUNDS), "--rate",
          f"{KERNELS}={RATE}", "--controls", "", f"--metric=-{METRICS[task]}")  # fmt: skip
  return last


def masked(options: argparse.Namespace, mask: str) -> pathlib.Path | str:
  """Returns the folder of the pretrained weights with a mask."""
  folder = options.workdir / f"masked-{mask}"
  if mask == "none":
    return options.start
  if not (folder / "done").exists():
    shutil.rmtree(folder, ignore_errors=True)
    by = ["--mask", str(find_ticket(options, mask))] if mask in STEPS else ["--prune", mask, "--targets", KERNELS]
    by += [] if mask in STEPS else ["--sparsity", str(1 - (1 - RATE) ** ROUNDS)]
    lmjax("compress", "--workdir", str(options.start), "--output", str(folder), *by, "--measure", "")
    (folder / "done").touch()
  return folder


def train(options: argparse.Namespace, target: str, mask: str) -> list[float]:
  """Returns the score of each seed on a target from the weights with a mask."""
  folder, start = options.workdir / target / mask, masked(options, mask)
  file = folder / "seeds.json"
  if not file.exists() or len(json.loads(file.read_text())["runs"]) < options.seeds:
    transform = [] if mask == "none" else [f"--config.{key}={value}" for key, value in KEEP_ZEROS.items()]
    lmjax("seeds", *config(options, target, start), *transform, "--workdir", str(folder), "--seeds",
          f"0:{options.seeds}")  # fmt: skip
  runs = json.loads(file.read_text())["runs"]
  return [run[METRICS[target]] for run in list(runs.values())[: options.seeds]]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--start", required=True, help="the saved encoder")
  parser.add_argument("--sst2", required=True, help="the folder of SST-2")
  parser.add_argument("--stsb", required=True, help="the folder of STS-B")
  parser.add_argument("--workdir", required=True, type=pathlib.Path)
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--target", choices=tuple(STEPS), action="append", help="default: both")
  options = parser.parse_args()
  for target in options.target or STEPS:
    other = next(task for task in STEPS if task != target)
    for mask in ("none", target, "random", other):
      print(json.dumps({"target": target, "mask": mask, "scores": train(options, target, mask)}), flush=True)


if __name__ == "__main__":
  main()
