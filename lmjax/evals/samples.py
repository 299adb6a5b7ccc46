"""Generated samples, which show what numbers do not; imported for the runs that make them."""

import functools
from collections.abc import Callable

from lmjax.data.sources.base import read_document
from lmjax.data.sources.pair import Pair
from lmjax.data.tokenizers.base import ends_of
from lmjax.decode.logits import Sampling
from lmjax.decode.sample import Sampler
from lmjax.evals.base import Context
from lmjax.models.base import GENERATES
from lmjax.tasks.base import Base, Task
from lmjax.utils.pytree import Tree

TOKENS = 64  # of a sample, at most
LOOK = 100  # validation documents among which the sources for an encoder-decoder are looked for


def generates(task: Task) -> bool:
  """Returns whether a task trains a model that generates text."""
  return task.model.kind in GENERATES and type(task).scored is not Base.scored


def make(context: Context, count: int) -> Callable[[Tree], list[str]] | None:
  """Returns a function from parameters to samples, the same seeds every time; None for a model that does not generate.

  A decoder starts from the start token; an encoder-decoder reads the first sources of the validation data.
  """
  task, tokenizer, sources = context.task, context.tokenizer, None
  if not generates(task):
    return None
  if task.model.kind == "encoder_decoder":
    data = context.data.validation
    documents = (read_document(data, i) for i in range(min(len(data), LOOK)))
    texts = [document.source for document in documents if isinstance(document, Pair)][:count]
    sources = [[*tokenizer.encode(text)[: context.data.length - 1], tokenizer.end] for text in texts]
    if not sources:
      return None
  rows = count if sources is None else len(sources)
  most = context.data.length if sources is None else TOKENS + 1
  sampler = Sampler(task.model, most, Sampling(), ends_of(tokenizer))
  return functools.partial(_samples, sampler, tokenizer, rows, min(TOKENS, most - 1), sources)


def _samples(sampler, tokenizer, rows: int, new: int, sources, params: Tree) -> list[str]:
  if new < 1:
    return []
  starts = [[tokenizer.start]] * rows
  drawn = list(sampler.tokens(sampler.prepare(params["model"]), starts, new, list(range(rows)), new, sources))
  ids = [[int(i) for part in drawn for i in part[row] if i >= 0] for row in range(rows)]
  return [tokenizer.decode([i for i in row if i not in ends_of(tokenizer)]) for row in ids]
