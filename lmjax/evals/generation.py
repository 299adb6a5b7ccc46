"""What a model writes, beside what it should have written."""

import dataclasses

import numpy as np

from lmjax.data.pipeline import Reader
from lmjax.data.sources.pairs import Pair
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.decode.beam import Beam
from lmjax.decode.logits import Sampling
from lmjax.decode.sample import Sampler
from lmjax.evals.base import Run
from lmjax.parallel.sharding import Layout
from lmjax.tasks.base import Task
from lmjax.utils.errors import UserError
from lmjax.utils.pytree import Tree

ROWS = 64  # texts written together


@dataclasses.dataclass(frozen=True)
class Generation:
  """Writes the targets of validation pairs and compares them.

    exact = share of targets written to the letter (spaces at the ends apart)
    bleu = sacreBLEU of the corpus, 13a tokens, case kept (Post, 2018, arXiv:1804.08771)

  beams: 1 is greedy; penalty: see Beam; pairs: the first so many, 0 for all; new: tokens of a target, at most.
  """

  beams: int = 1
  penalty: float = 0.6
  pairs: int = 0
  new: int = 0  # 0: the target's length in data
  bleu: bool = True

  def prepare(self, task: Task, data: Reader, tokenizer: Tokenizer, batch: int, layout: Layout) -> Run:
    count = min(self.pairs or len(data.validation), len(data.validation))
    pairs = [pair for pair in map(data.validation.__getitem__, range(count)) if isinstance(pair, Pair)]
    if not pairs:
      raise UserError("evals: generation needs pairs of texts to validate on")
    sources = [[*tokenizer.encode(pair.source)[: data.length - 1], tokenizer.end] for pair in pairs]
    new = self.new or data.shared()["target_length"]

    def run(params: Tree) -> dict[str, float]:
      written = write(task, tokenizer, params, sources, new, self.beams, self.penalty)
      found = {"exact": float(np.mean([w.strip() == p.target.strip() for w, p in zip(written, pairs, strict=True)]))}
      if self.bleu:
        import sacrebleu  # only here

        found["bleu"] = sacrebleu.corpus_bleu(written, [[pair.target for pair in pairs]]).score
      return found

    return run


def write(
  task: Task,
  tokenizer: Tokenizer,
  params: Tree,
  sources: list[list[int]],
  new: int,
  beams: int = 1,
  penalty: float = 0.6,
) -> list[str]:
  """Returns the text a model writes for each source, those of like length together."""
  decoder = Sampler(task.model, new + 1, Sampling(temperature=0.0), tokenizer.end)
  if beams > 1:
    decoder = Beam(task.model, new + 1, beams, penalty, tokenizer.end)
  params = decoder.prepare(params["model"])
  texts = [""] * len(sources)
  order = sorted(range(len(sources)), key=lambda i: len(sources[i]))
  for at in range(0, len(order), ROWS):
    numbers = order[at : at + ROWS]
    group = [sources[i] for i in numbers]
    group += [group[-1]] * (ROWS - len(group))  # one number of rows, one compilation a width
    starts = [[tokenizer.start]] * ROWS
    if beams > 1:
      ids = decoder.search(params, starts, new, group)[0][:, 0]
    else:
      ids = np.concatenate(list(decoder.tokens(params, starts, new, [0] * ROWS, 16, group)), axis=1)
    for i, row in zip(numbers, ids, strict=False):
      texts[i] = tokenizer.decode([int(t) for t in row if t >= 0 and t != tokenizer.end])
  return texts
