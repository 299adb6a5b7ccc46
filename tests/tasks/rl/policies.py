"""Tiny policies and their prompts, for tests."""

import jax
import numpy as np

from lmjax.data.chat.template import Message
from lmjax.data.objectives.prompts import Prompts
from lmjax.data.sources.prompts import Prompt
from lmjax.data.tokenizers.registry import TokenizerConfig
from lmjax.tasks.rl.ppo import PPO
from lmjax.tasks.rl.rewards import FunctionReward
from lmjax.testing import tiny_decoder

WORDS = ("who is it", "b", "a b c d e", "and then?", "one more", "yes or no")
PROMPTS = [Prompt((Message("user", words),), f"test:{i}") for i, words in enumerate(WORDS)]
LENGTH, WIDTH = 56, 48


def vowels(prompt: str, answer: str) -> float:
  """A reward: the fraction of vowels."""
  return sum(letter in "aeiou" for letter in answer) / max(len(answer), 1)


def reader_of(prompts=PROMPTS, **changes):
  """Returns the reader of some prompts, and its tokenizer."""
  settings = dict(prompt_tokens=WIDTH) | changes
  reader = Prompts(prompts, prompts, settings.pop("length", LENGTH), TokenizerConfig("bpe", 290), **settings)
  return reader, reader.make_tokenizer()


def policy_of(reader, tokenizer, kind=PPO, model=None, **changes):
  settings = dict(rewards=(FunctionReward(function=vowels),), reference="none") | changes
  model = model or tiny_decoder(vocabulary=tokenizer.size, length=reader.length)
  return kind(model, **reader.shared(tokenizer), **settings)


def prompts_of(reader, tokenizer, rows=4):
  """Returns a batch of prompts, whole on the host."""
  batch = reader.validate(tokenizer, rows, 1)[0]
  return {key: batch[key] for key in ("inputs", "segments", "weights")}


def noisy(params, seed=1, size=0.1):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda p: p + size * rng.standard_normal(p.shape).astype(np.float32), params)
