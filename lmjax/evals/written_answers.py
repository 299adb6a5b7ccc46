"""Answers that an encoder-decoder writes from several paragraphs, compared as SQuAD's script does."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from flax import linen as nn

from lmjax.data.objectives.paragraphs import Paragraphs
from lmjax.data.sources.base import BadRecord, read_document
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

  questions: number of them to use; 0 is all. f1_low, f1_high: of the 95 % bootstrap interval over `resamples` samples.
  """

  questions: int = 0
  resamples: int = 1000

  def __post_init__(self):
    if self.questions < 0 or self.resamples < 0:
      raise ValueError("questions and resamples are at least 0")

  def prepare(self, context: Context) -> Measure:
    data, tokenizer = context.data, context.tokenizer
    if not isinstance(data, Paragraphs):
      raise UserError("evals: written answers need data.kind=lmjax.data.objectives.paragraphs:Paragraphs")
    documents = data.documents(data.validation, tokenizer, None, 1)
    questions = [read_document(data.validation, i) for i in range(len(data.validation))]
    sources, true = [], []
    for question in questions[: self.questions or None]:
      document = documents.encode(question)
      if not isinstance(document, BadRecord):
        sources.append(document[0][:-1])
        true.append([text for text, _ in question.answers])

    def measure(params: Tree) -> dict[str, float]:
      answers = write_answers(context.task.model, params["model"], tokenizer, sources, data.target_length)
      values = [compare(answer, texts) for answer, texts in zip(answers, true, strict=True)]
      return summarize(np.array(values), self.resamples)

    return measure


def write_answers(
  model: nn.Module, params: Tree, tokenizer: Tokenizer, sources: Sequence[Sequence[np.ndarray]], new: int
) -> list[str]:
  """Returns the answer to each question, greedily; sources of similar length are read together.

  Args:
    sources: the paragraphs of each question, as `encode_paragraphs` returns them.
    new: tokens of an answer at most.
  """
  sampler = Sampler(model, new + 1, Sampling(temperature=0.0), ends_of(tokenizer))
  params, answers = sampler.prepare(params), [""] * len(sources)
  sizes = [sum(map(len, paragraphs)) for paragraphs in sources]
  order, rows = sorted(range(len(sources)), key=sizes.__getitem__), min(ROWS, len(sources))
  start, seeds = np.full((rows, 1), tokenizer.start, np.int32), np.zeros(rows, np.uint32)
  for at in range(0, len(order), rows):
    numbers = order[at : at + rows]
    tokens, segments = (np.zeros((rows, -(-sizes[numbers[-1]] // STEP) * STEP), np.int32) for _ in range(2))
    for row, i in enumerate(numbers):
      tokens[row, : sizes[i]] = np.concatenate(sources[i])
      segments[row, : sizes[i]] = np.repeat(np.arange(len(sources[i])) + 1, [len(ids) for ids in sources[i]])
    parts = sampler.continuations(params, start, start >= 0, new, seeds, STEP, (tokens, segments))
    for i, drawn in zip(numbers, np.concatenate(list(parts), axis=1), strict=False):
      answers[i] = tokenizer.decode([int(t) for t in drawn if t >= 0 and t not in ends_of(tokenizer)]).strip()
  return answers
