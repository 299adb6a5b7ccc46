"""Generated text compared with references: exact match and BLEU."""

import dataclasses
from typing import Any

import numpy as np
import sacrebleu

from lmjax.data.sources.base import read_document
from lmjax.data.sources.pair import Pair
from lmjax.data.tokenizers.base import Tokenizer, ends_of
from lmjax.decode.logits import Sampling
from lmjax.decode.sample import Sampler
from lmjax.evals.base import Context, Measure
from lmjax.tasks.base import Task
from lmjax.utils import names
from lmjax.utils.errors import UserError
from lmjax.utils.pytree import Tree

ROWS = 64  # sources in a batch


@dataclasses.dataclass(frozen=True)
class Generation:
  """Generates a target for the source of each validation pair and compares it with the reference.

    exact = fraction of targets equal to the reference, after stripping white space at both ends
    bleu = corpus sacreBLEU, 13a tokenization, case-sensitive (Post, 2018, arXiv:1804.08771)

  beams: 1 is greedy decoding. length_penalty: of beam search, see `Beam`. pairs: number of validation pairs to use; 0
  is all. max_new_tokens: maximum tokens of a generated target; 0 is the target length of the data. bleu: whether to
  compute BLEU.
  """

  beams: int = 1
  length_penalty: float = 0.6
  pairs: int = 0
  max_new_tokens: int = 0
  bleu: bool = True

  def prepare(self, context: Context) -> Measure:
    tokenizer, (pairs, sources) = context.tokenizer, pairs_of(context, self.pairs)
    new = self.max_new_tokens or context.data.shared()["target_length"]

    def measure(params: Tree) -> dict[str, float]:
      outputs = generate(context.task, tokenizer, params, sources, new, self.beams, self.length_penalty)
      equal = [output.strip() == pair.target.strip() for output, pair in zip(outputs, pairs, strict=True)]
      scores = {"exact": float(np.mean(equal))}
      if self.bleu:
        scores["bleu"] = sacrebleu.corpus_bleu(outputs, [[pair.target for pair in pairs]]).score
      return scores

    return measure


def pairs_of(context: Context, most: int = 0) -> tuple[list[Pair], list[list[int]]]:
  """Returns the first pairs of the validation data, all of them for 0, and the ids of their sources with an end token.

  Raises:
    UserError: there are none.
  """
  data, tokenizer = context.data, context.tokenizer
  count = min(most or len(data.validation), len(data.validation))
  pairs = [pair for pair in (read_document(data.validation, i) for i in range(count)) if isinstance(pair, Pair)]
  if not pairs:
    raise UserError("evals: generation needs validation data of source-target pairs; remove it from config.evals")
  return pairs, [[*tokenizer.encode(pair.source)[: data.length - 1], tokenizer.end] for pair in pairs]


def generate(
  task: Task, tokenizer: Tokenizer, params: Tree, sources: list[list[int]], new: int, beams: int = 1,
  penalty: float = 0.6,
) -> list[str]:  # fmt: skip
  """Returns the generated text of each source; sources of similar length are decoded together.

  Args:
    sources: token ids, each with its end token.
    new: maximum number of tokens of a target.
    penalty: length penalty of beam search.
  """
  decoder: Any = Sampler(task.model, new + 1, Sampling(temperature=0.0), ends_of(tokenizer))
  if beams > 1:  # named, since most runs are greedy
    decoder = names.load("lmjax.decode.beam:Beam")(task.model, new + 1, beams, penalty, ends_of(tokenizer))
  params = decoder.prepare(params["model"])
  outputs = [""] * len(sources)
  order = sorted(range(len(sources)), key=lambda i: len(sources[i]))
  for at in range(0, len(order), ROWS):
    numbers = order[at : at + ROWS]
    group = [sources[i] for i in numbers]
    group += [group[-1]] * (ROWS - len(group))  # a fixed number of rows compiles once per width
    starts = [[tokenizer.start]] * ROWS
    if beams > 1:
      ids = decoder.search(params, starts, new, group)[0][:, 0]
    else:
      ids = np.concatenate(list(decoder.tokens(params, starts, new, [0] * ROWS, 16, group)), axis=1)
    for i, row in zip(numbers, ids, strict=False):
      outputs[i] = tokenizer.decode([int(t) for t in row if t >= 0 and t not in ends_of(tokenizer)])
  return outputs
