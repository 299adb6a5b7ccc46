"""Answers that an encoder-decoder writes from several paragraphs, compared as SQuAD's script does."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from flax import linen as nn

from lmjax.data.objectives.paragraphs import Paragraphs, join_paragraphs
from lmjax.data.sources.base import BadRecord, check_skipped_fraction, read_document
from lmjax.data.tokenizers.base import Tokenizer, ends_of
from lmjax.decode.logits import Sampling
from lmjax.decode.sample import STEP, Sampler
from lmjax.evals.base import Context, Measure
from lmjax.evals.squad_scores import compare, summarize
from lmjax.utils.errors import UserError
from lmjax.utils.pytree import Tree

ROWS = 16  # questions in a batch


@dataclasses.dataclass(frozen=True)
class WrittenAnswers:
  """Exact match and F1, as `AnswerMetrics` defines them, of greedily written answers to the validation questions.

  f1_low, f1_high: of the 95 % bootstrap interval over `resamples` samples.
  """

  resamples: int = 1000

  def prepare(self, context: Context) -> Measure:
    data, tokenizer = context.data, context.tokenizer
    if not isinstance(data, Paragraphs):
      raise UserError("evals: written answers need data.kind=lmjax.data.objectives.paragraphs:Paragraphs")
    documents = data.documents(data.validation, tokenizer, None, 1)
    questions = [read_document(data.validation, i) for i in range(len(data.validation))]
    encoded = [documents.encode(question) for question in questions]
    check_skipped_fraction(len(encoded), [row for row in encoded if isinstance(row, BadRecord)])
    rows = [(q, row[0][:-1]) for q, row in zip(questions, encoded, strict=True) if not isinstance(row, BadRecord)]
    if not rows:
      raise UserError("data.validation: there is no question with a paragraph")
    sources, true = [row for _, row in rows], [[text for text, _ in q.answers] for q, _ in rows]

    def measure(params: Tree) -> dict[str, float]:
      answers = write_answers(context.task.model, params["model"], tokenizer, sources, data.target_length)
      values = [compare(answer, texts) for answer, texts in zip(answers, true, strict=True)]
      return summarize(np.array(values), self.resamples)

    return measure


def write_answers(
  model: nn.Module, params: Tree, tokenizer: Tokenizer, sources: Sequence[Sequence[np.ndarray]], new: int
) -> list[str]:
  """Returns the answer to each question, greedily; those with as many paragraphs are read together.

  Args:
    sources: the paragraphs of each question, as `encode_paragraphs` returns them.
    new: tokens of an answer at most.
  """
  sampler = Sampler(model, new + 1, Sampling(temperature=0.0), ends_of(tokenizer))
  params, answers = sampler.prepare(params), [""] * len(sources)
  order, size = sorted(range(len(sources)), key=lambda i: len(sources[i])), model.config.paragraph
  rows = min(ROWS, len(sources))
  start, seeds = np.full((rows, 1), tokenizer.start, np.int32), np.zeros(rows, np.uint32)
  for at in range(0, len(order), rows):
    numbers = order[at : at + rows]
    length = size * len(sources[numbers[-1]])
    joined = [join_paragraphs(sources[i], size, length) for i in numbers]
    joined += joined[:1] * (rows - len(joined))
    tokens, segments = map(np.stack, zip(*joined, strict=True))
    parts = sampler.continuations(params, start, start >= 0, new, seeds, STEP, (tokens, segments > 0))
    for i, drawn in zip(numbers, np.concatenate(list(parts), axis=1), strict=False):
      answers[i] = tokenizer.decode([int(t) for t in drawn if t >= 0 and t not in ends_of(tokenizer)]).strip()
  return answers
