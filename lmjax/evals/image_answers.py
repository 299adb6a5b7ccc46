"""Answers to questions about images, compared with the right ones."""

import collections
import dataclasses

import numpy as np

from lmjax.data.images import patches_of
from lmjax.data.objectives.images import ImageText, prompt_ids
from lmjax.data.sources.base import Source, read_document
from lmjax.data.sources.pictures import Picture
from lmjax.data.tokenizers.base import ends_of
from lmjax.decode.logits import Sampling
from lmjax.decode.sample import Sampler, pad_prompts
from lmjax.evals.base import Context, Measure
from lmjax.utils.errors import UserError
from lmjax.utils.pytree import Tree

ROWS = 64  # answers in a batch


@dataclasses.dataclass(frozen=True)
class ImageAnswers:
  """Greedy answers to the questions of the validation data.

    exact = fraction of answers that are the right one
    exact_KIND = the same of each kind of question
    most_frequent = fraction of right answers where each is the most frequent one of its kind

  pictures: how many of the validation data; 0 is all. max_new_tokens: of an answer, at most. source: of pictures, by
  default the validation data.
  """

  pictures: int = 0
  max_new_tokens: int = 32
  source: Source | None = None

  def prepare(self, context: Context) -> Measure:
    data = context.data
    if not isinstance(data, ImageText):
      raise UserError("evals: answers about images need data of lmjax.data.objectives.images:ImageText")
    source = self.source or data.validation
    count = min(self.pictures or len(source), len(source))
    pictures = [p for p in (read_document(source, i) for i in range(count)) if isinstance(p, Picture)]
    if not pictures:
      raise UserError("evals: the validation data has no images")
    prompts = [[0] * (data.image // data.patch) ** 2 + prompt_ids(context.tokenizer, p.prompt) for p in pictures]
    longest = max(map(len, prompts))
    new = min(self.max_new_tokens, data.length - longest)
    if new < 1:
      raise UserError(f"evals: a prompt has {longest:,} tokens with its image, and a row {data.length:,}")
    tokenizer = context.tokenizer
    sampler = Sampler(context.task.model, data.length, Sampling(temperature=0.0), ends_of(tokenizer))

    def measure(params: Tree) -> dict[str, float]:
      params, right = sampler.prepare(params["model"]), []
      for first in range(0, len(pictures), ROWS):
        own = [*range(first, min(first + ROWS, len(pictures)))]
        own += own[-1:] * (ROWS - len(own))  # a fixed number of rows is compiled once
        patches = np.stack([patches_of(pictures[i].pixels(data.image), data.patch) for i in own]) * (not data.blind)
        tokens, valid = pad_prompts([[0] * (longest - len(prompts[i])) + prompts[i] for i in own], new, data.length)
        for row, i in enumerate(own):
          valid[row, : -len(prompts[i])] = False
        made = sampler.continuations(params, tokens, valid, new, np.zeros(ROWS, np.uint32), new, patches)
        for i, ids in zip(own, np.concatenate(list(made), axis=1), strict=True):
          text = tokenizer.decode([int(t) for t in ids if t >= 0 and t not in ends_of(tokenizer)])
          right.append(" ".join(text.split()) == " ".join(pictures[i].answer.split()))
      right = right[: len(pictures)]
      kinds = [picture.kind for picture in pictures]
      scores = {"exact": float(np.mean(right)), "most_frequent": baseline(pictures)}
      for kind in dict.fromkeys(filter(None, kinds)):
        scores[f"exact_{kind}"] = float(np.mean([r for r, k in zip(right, kinds, strict=True) if k == kind]))
      return scores

    return measure


def baseline(pictures: list[Picture]) -> float:
  """Returns the fraction of pictures whose answer is the most frequent one of their kind."""
  counts: dict[str, collections.Counter] = {}
  for picture in pictures:
    counts.setdefault(picture.kind, collections.Counter())[picture.answer] += 1
  return sum(counter.most_common(1)[0][1] for counter in counts.values()) / len(pictures)
