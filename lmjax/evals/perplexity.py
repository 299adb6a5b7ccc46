"""Perplexity and bits per byte on the validation text."""

import dataclasses
import math

import numpy as np

from lmjax.data.batch import Batch
from lmjax.evals.base import Context, Measure
from lmjax.evals.terms import sum_terms
from lmjax.utils.pytree import Tree


@dataclasses.dataclass(frozen=True)
class Perplexity:
  """The mean negative log-likelihood of the validation text.

    loss = nats per token;  perplexity = exp(loss);  bits_per_byte = total nats / ln 2 / UTF-8 bytes of scored text
    accuracy = fraction of tokens that are the most probable prediction

  steps: number of validation batches; 0 is one full pass.
  """

  steps: int = 0

  def prepare(self, context: Context) -> Measure:
    batches = context.data.validate(context.tokenizer, context.batch, self.steps)
    text_bytes = sum(float(np.sum(batch["bytes"] * _scored(batch))) for batch in batches)
    weights = sum(float(batch["weights"].sum()) for batch in batches)
    measure_terms = sum_terms(context, batches)

    def measure(params: Tree) -> dict[str, float]:
      terms = measure_terms(params)
      loss = terms["nll"].value()
      return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "accuracy": terms["accuracy"].value(),
        # A task may score fewer tokens than the data gives weights to.
        "bits_per_byte": loss * weights / math.log(2) / text_bytes,
      }

    return measure


def _scored(batch: Batch) -> np.ndarray:
  """Returns the part of each row's text that has a weight [B]: the weights over the number of targets."""
  targets = batch["weights"] > 0
  for key in ("decoder_segments", "segments"):
    if key in batch and batch[key].shape == targets.shape:
      targets = batch[key] > 0
      break
  return batch["weights"].sum(axis=1) / np.maximum(targets.sum(axis=1), 1)
