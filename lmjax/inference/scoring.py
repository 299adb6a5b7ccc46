"""Log-likelihoods and answers of a loaded model, as evaluation suites and lm-evaluation-harness ask for them."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lmjax.data.tokenizers.special import encode
from lmjax.decode.logits import Sampling
from lmjax.evals.suites.encode import Encoder, Row
from lmjax.evals.suites.likelihood import Likelihood
from lmjax.evals.suites.task_files import MAX_TOKENS
from lmjax.inference.generate import Generator
from lmjax.storage.base import LoadedModel
from lmjax.utils.errors import UserError

Pair = tuple[str, str]  # a context and its continuation
MAX_NEW_TOKENS = 256  # of an answer, as lm-evaluation-harness has it
GROUP = 8  # answers that are generated together


@dataclasses.dataclass(frozen=True)
class Score:
  """The scores of one request: the log-likelihood of each continuation, and whether greedy decoding gives it."""

  number: int
  log_likelihoods: np.ndarray
  greedy: np.ndarray


def encoder_of(loaded: LoadedModel) -> Encoder:
  """Returns what turns strings into rows for a model."""
  return Encoder(loaded.tokenizer, loaded.task.model.kind, loaded.length)


def likelihood_of(loaded: LoadedModel) -> Likelihood:
  """Returns what scores rows with a model.

  Raises:
    UserError: the model scores no tokens.
  """
  if loaded.task.model.kind == "bidirectional_lm" and not loaded.params["heads"]:
    raise UserError("evaluate: this model scores no words: its format has no softmax")
  return Likelihood(loaded.task, loaded.layout, loaded.length, loaded.tokenizer.start)


def scores(
  loaded: LoadedModel,
  requests: Sequence[Sequence[Pair]],
  rolling: bool = False,
  stride: int = 0,
  name: Callable[[int], str] = "request {}".format,
) -> Iterator[list[Score]]:
  """Yields the scores of requests, those that a batch completes.

  Args:
    requests: the contexts and continuations of each; with `rolling`, the continuation is a whole text.
    stride: with `rolling`, the tokens that a window predicts.
    name: of a request, by its number, for messages.

  Raises:
    UserError: a continuation has no tokens, or more than the model takes.
  """
  encoder, likelihood = encoder_of(loaded), likelihood_of(loaded)
  rows: list[Row] = []
  owners: list[tuple[int, int]] = []  # the request of each row, and its continuation
  waiting: list[int] = []  # rows of each request that are not scored yet
  for number, pairs in enumerate(requests):
    before = len(rows)
    for which, (context, continuation) in enumerate(pairs):
      try:
        new = encoder.rolling(continuation, stride) if rolling else encoder.pair(context, continuation)
      except UserError as error:
        raise UserError(f"{name(number)}: {str(error).removeprefix('evaluate: ')}") from error
      rows += new
      owners += [(number, which)] * len(new)
    waiting.append(len(rows) - before)
  results = [Score(i, np.zeros(len(pairs)), np.ones(len(pairs), bool)) for i, pairs in enumerate(requests)]
  if empty := [result for result, count in zip(results, waiting, strict=True) if not count]:
    yield empty  # text without tokens
  for chosen, values, best in likelihood(loaded.params, rows):
    complete = []
    for row, value, is_best in zip(chosen, values, best, strict=True):
      number, which = owners[row]
      results[number].log_likelihoods[which] += value
      results[number].greedy[which] &= is_best
      waiting[number] -= 1
      if not waiting[number]:
        complete.append(results[number])
    yield complete


def answers(
  loaded: LoadedModel, prompts: Sequence[str], settings: Mapping[str, Any], until: Sequence[str] = ()
) -> Iterator[tuple[int, str]]:
  """Yields (number of a prompt, its continuation) as they end, those of the longest prompts first.

  A prompt that leaves no space for the answer loses its beginning.

  Args:
    settings: `generation_kwargs` of lm-evaluation-harness: until, do_sample, temperature, top_k, top_p, max_gen_toks.
    until: where the settings have none, strings before which an answer ends.
  """
  new = int(next((settings[key] for key in MAX_TOKENS if settings.get(key) is not None), MAX_NEW_TOKENS))
  stops = settings.get("until", until)
  temperature = float(settings.get("temperature", 1.0)) if settings.get("do_sample") else 0.0
  try:
    sampling = Sampling(temperature, int(settings.get("top_k", 0)), float(settings.get("top_p", 1.0)))
  except ValueError as error:
    raise UserError(f"evaluate: generation_kwargs: {error}") from error
  if new < 1 or (loaded.task.model.kind == "decoder" and new >= loaded.length):
    raise UserError(f"evaluate: max_gen_toks must be from 1 to {loaded.length - 1}, not {new}")
  stops = tuple(stop for stop in ([stops] if isinstance(stops, str) else stops) if stop)
  generator = Generator(loaded, sampling, new, stops=stops, truncate=True)
  sizes = [len(encode(loaded.tokenizer, prompt, False)) for prompt in prompts]
  order = sorted(range(len(prompts)), key=lambda i: -sizes[i])
  for row, text in generator.all_texts([(prompts[i], 0) for i in order], GROUP):
    yield order[row], text
