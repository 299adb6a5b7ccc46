"""Prints how far lmjax is from transformers, for a tiny random model of every Hugging Face family, as rows of a table.

    python -m benchmarks.families               all
    python -m benchmarks.families gemma         those whose name begins with it

The models and their inputs are those of tests/storage/test_huggingface.py. Of logits, of classes of pairs, or of the
vectors of a model without a head, the one with the largest difference.
"""

import sys
import tempfile

import numpy as np
import torch

from lmjax.storage import huggingface
from tests.storage.test_huggingface import CASES, IDS, VALID, hf_model, hf_outputs, lmjax_outputs


def differences(case: str) -> tuple[int, float, float, float]:
  """Returns the number of parameters, the largest value, and the differences from float32 and from float64."""
  model = hf_model(case)
  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    loaded = huggingface.load(folder)
    outputs = lmjax_outputs(loaded)
  wanted, exact = hf_outputs(model), hf_outputs(model.to(torch.float64))
  keep = VALID if loaded.model.kind == "encoder" else np.ones(IDS.shape, bool)  # vectors of padding are of no use

  def largest(others: dict[str, np.ndarray]) -> float:
    gaps = [np.abs(np.asarray(outputs[key], np.float64) - value) for key, value in others.items()]
    return max(float((gap[keep] if gap.shape[:2] == IDS.shape else gap).max()) for gap in gaps)

  zero = {key: np.zeros(value.shape) for key, value in wanted.items()}
  return sum(p.numel() for p in model.parameters()), largest(zero), largest(wanted), largest(exact)


def main(names: list[str]) -> None:
  print("| model | parameters | largest value | from float32 | from float64 |\n|---|---|---|---|---|")
  for case in sorted(CASES):
    if not names or case.startswith(tuple(names)):
      count, value, single, double = differences(case)
      print(f"| {case} | {count:,} | {value:.2f} | {single:.1e} | {double:.1e} |", flush=True)


if __name__ == "__main__":
  main(sys.argv[1:])
