"""Baselines against direct counting, the loss over validation data, and generated text."""

import collections
import math

import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.data.objectives.masked_lm import SentencePairs
from lmjax.data.sources.python_docs import PythonDocs
from lmjax.data.sources.text import TextFiles
from lmjax.data.tokenizers import words
from lmjax.data.tokenizers.base import Bytes
from lmjax.data.tokenizers.registry import TokenizerConfig
from lmjax.evals.base import Context
from lmjax.evals.baselines.kneser_ney import perplexity, token_lines
from lmjax.evals.baselines.unigram import UnigramBaseline
from lmjax.evals.generation import generate
from lmjax.inference.probe import Probe, scores, token_f1
from lmjax.models.encoder_decoder import Config, EncoderDecoder
from lmjax.models.heads import scalar_mix
from lmjax.tasks.seq2seq import Seq2Seq
from lmjax.testing import init_params


def slow_kneser_ney(train: list[list[int]], test: list[list[int]], order: int, size: int) -> float:
  """The formula, one n-gram at a time."""
  grams = [collections.Counter() for _ in range(order + 1)]
  for line in train:
    padded = [-1] * (order - 1) + line
    for t in range(order - 1, len(padded)):
      for n in range(1, order + 1):
        grams[n][tuple(padded[t - n + 1 : t + 1])] += 1
  counts = [None] * (order + 1)
  counts[order] = grams[order]
  for n in range(1, order):  # distinct words before the n-gram
    counts[n] = collections.Counter(gram[1:] for gram in grams[n + 1])
  followers = [None] + [collections.Counter(gram[:-1] for gram in counts[n]) for n in range(1, order + 1)]
  totals = [None] + [collections.Counter() for _ in range(order)]
  for n in range(1, order + 1):
    for gram, count in counts[n].items():
      totals[n][gram[:-1]] += count

  def probability(gram):
    if not gram:
      return 1 / size
    n, context, lower = len(gram), gram[:-1], probability(gram[1:])
    once, twice = (sum(c == k for c in counts[n].values()) for k in (1, 2))
    d = once / max(once + 2 * twice, 1)
    if not totals[n][context]:
      return lower
    return (max(counts[n][gram] - d, 0) + d * followers[n][context] * lower) / totals[n][context]

  logs = []
  for line in test:
    padded = [-1] * (order - 1) + line
    logs += [math.log(probability(tuple(padded[t - order + 1 : t + 1]))) for t in range(order - 1, len(padded))]
  return math.exp(-np.mean(logs))


@pytest.mark.parametrize("order", [2, 3, 4])
def test_kneser_ney_equals_the_formula(order):
  rng = np.random.default_rng(order)
  draw = lambda n: [[*rng.zipf(1.6, rng.integers(1, 9)).clip(1, 12).tolist(), 0] for _ in range(n)]  # noqa: E731
  train, test = draw(60), draw(20)
  flat = lambda lines: np.array([x for line in lines for x in [-1] * (order - 1) + line])  # noqa: E731
  value = perplexity(flat(train), flat(test), order, 13)
  assert value == pytest.approx(slow_kneser_ney(train, test, order, 13), rel=1e-9)


def test_kneser_ney_on_the_penn_treebank(data):
  train, valid = (str(data / "lm_ptb" / name) for name in ("ptb.train.txt.gz", "ptb.valid.txt"))
  source, held_out = TextFiles(train, chunk_bytes=65_536), TextFiles(valid, document="file")
  tokenizer = words.WordTokenizerConfig(split_by="spaces", size=50_000).make(source[i] for i in range(len(source)))
  value = perplexity(token_lines(source, tokenizer, 5), token_lines(held_out, tokenizer, 5), 5, tokenizer.size)
  assert value == pytest.approx(151, abs=0.5)


def test_the_unigram_baseline_is_measured_at_masked_positions():
  data = SentencePairs(
    PythonDocs(":3%"),
    PythonDocs("95%:"),
    length=32,
    max_predictions=5,
    tokenizer=TokenizerConfig(algorithm="wordpiece", size=300),
  )
  tokenizer = data.make_tokenizer()
  scores = UnigramBaseline(steps=40).prepare(Context(None, data, tokenizer, 4, None))({})
  assert 0 < scores["masked_accuracy"] < 0.5 and 2 < scores["masked_lm"] < math.log(300) + 1


def test_a_probe_weights_the_informative_layer():
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 3, 300)
  signal, noise = np.eye(8)[labels] + 0.3 * rng.normal(size=(300, 8)), rng.normal(size=(300, 8))
  layers = np.stack([noise, signal])
  params = Probe(3).fit(layers, labels)
  assert (np.asarray(scores(params, layers)).argmax(-1) == labels).mean() > 0.95
  assert params["weights"][1] > params["weights"][0]
  blind = Probe(3).fit(layers[:1], labels)
  assert (np.asarray(scores(blind, layers[:1])).argmax(-1) == labels).mean() < 0.6
  assert token_f1(np.array([0, 1, 2, 1]), np.array([0, 1, 1, 0])) == pytest.approx(2 * 1 / (3 + 2))
  mixed = scalar_mix(layers, np.array([0.0, 0.0]), np.array(2.0))
  np.testing.assert_allclose(mixed, layers.sum(0), atol=1e-5)


def test_generated_texts_keep_the_order_of_their_sources():
  shape = dict(vocabulary=257, length=8, width=16, depth=1, heads=2, head_size=8, mlp=16)
  task, ids = Seq2Seq(EncoderDecoder(Config(**shape))), jnp.zeros((1, 4), jnp.int32)
  params = {"model": init_params(task.model, {"inputs": ids, "decoder_inputs": ids})["params"], "heads": {}}
  sources = [[5, 256], [7, 8, 9, 256], [1] * 20 + [256]]
  together = generate(task, Bytes(), params, sources, 6)
  assert together == [generate(task, Bytes(), params, [source], 6)[0] for source in sources]
  assert len(generate(task, Bytes(), params, sources, 6, beams=2)) == 3
