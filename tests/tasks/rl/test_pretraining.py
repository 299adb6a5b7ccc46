"""PPO with a value network of its own, which starts as the reward model, and with text of pretraining (PPO-ptx)."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.__main__ import main
from lmjax.data.objectives.causal import Text
from lmjax.data.objectives.prompts_with_text import PromptsWithText
from lmjax.data.tokenizers.registry import TokenizerConfig
from lmjax.storage.run import RunFolder
from lmjax.tasks.base import FrozenModel, weighted_sum
from lmjax.tasks.causal_lm import CausalLM
from lmjax.tasks.reward import RewardModel
from lmjax.tasks.rl.rewards import ModelReward
from lmjax.testing import init_params, tiny_decoder
from lmjax.train import accumulate
from lmjax.utils.errors import UserError
from tests.tasks.rl.policies import LENGTH, PROMPTS, WIDTH, noisy, policy_of, prompts_of, reader_of

ROWS = 4
LINES = ["one line of text", "another one, longer", "and more of it", "the last"] * 3


@functools.cache
def mixed():
  """Returns a reader of prompts and text, and its tokenizer."""
  settings = dict(prompt_tokens=WIDTH, text=LINES)
  reader = PromptsWithText(PROMPTS, PROMPTS, LENGTH, TokenizerConfig("bpe", 290), **settings)
  return reader, reader.make_tokenizer()


def rows(reader, tokenizer, number, positions=None):
  """Returns some batches of training, and the positions after them."""
  batches = reader.train(tokenizer, ROWS, 0, positions)
  made = [next(batches) for _ in range(number)]
  batches.close()
  return made, batches.positions


def test_each_prompt_has_a_row_of_text():
  """Prompts are those of the reader without text, text that of a run of pretraining; rows resume from positions."""
  reader, tokenizer = mixed()
  (first, second), _ = rows(reader, tokenizer, 2)
  _, positions = rows(reader, tokenizer, 1)
  (again,), _ = rows(reader, tokenizer, 1, positions)
  assert all(np.array_equal(again[key], second[key]) for key in second)
  (prompts,), _ = rows(reader_of()[0], tokenizer, 1)
  (text,), _ = rows(Text(LINES, LINES, LENGTH, TokenizerConfig("bpe", 290)), tokenizer, 1)
  own = {key for key in first if key.startswith("pretraining_")}
  assert {key: first[key].tolist() for key in first if key not in own} == {k: v.tolist() for k, v in prompts.items()}
  assert own == {f"pretraining_{key}" for key in text} and all(
    np.array_equal(first[f"pretraining_{key}"], value) for key, value in text.items()
  )
  assert not any(key.startswith("pretraining_") for key in reader.validate(tokenizer, ROWS)[0])


@functools.cache
def made():
  """Returns a policy with both, the state of its reward model, and what it collects of a batch."""
  reader, tokenizer = mixed()
  model = tiny_decoder(vocabulary=tokenizer.size, length=LENGTH, depth=1)
  task = policy_of(
    reader, tokenizer, model=model, rewards=(ModelReward(path="r"),), value="reward", pretraining=2.0, minibatches=2
  )
  batch, _ = rows(reader, tokenizer, 1)
  batch = {key: jnp.asarray(value) for key, value in batch[0].items()}
  params = init_params(task, {key: jnp.zeros((1, LENGTH), jnp.int32) for key in ("inputs", "positions", "segments")})
  judge = RewardModel(model)
  reward = noisy(init_params(judge, {"inputs": jnp.zeros((1, LENGTH), jnp.int32)}), 7)
  frozen = {"reward_0": FrozenModel(judge, reward)}
  params = params | {"model": noisy(params["model"])}
  collected = [part.batch for part in task.collect(params, frozen, {}, batch, jax.random.key(0))]
  return task, params, frozen, batch, collected


def test_the_value_network_starts_as_the_reward_model():
  """V of a token is the reward of what is before it; the reward model has no gradient, and the policy none of V."""
  task, params, frozen, _, (part, _) = made()
  judge = frozen["reward_0"]
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(params["heads"]))
  hidden = jax.jit(judge.task.hidden)(judge.params, part).tokens
  rewards = judge.task.head("reward", judge.params, hidden)[..., 0]
  weights = np.asarray(part["weights"])
  np.testing.assert_allclose(part["old_values"], np.asarray(rewards)[:, WIDTH - 1 : -1] * weights, atol=1e-5)

  @jax.jit
  @functools.partial(jax.grad, argnums=(0, 1))
  def gradients(params, judged):
    return task.loss(params, {"reward_0": dataclasses.replace(judge, params=judged)}, {}, part)[0]["value"].total

  own, _ = gradients(params, judge.params)
  sizes = {key: sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(own[key])) for key in own}
  assert sizes["heads"] > 0 and sizes["model"] == 0
  deep = tiny_decoder(vocabulary=task.model.config.vocabulary, length=LENGTH, depth=2)
  other = FrozenModel(RewardModel(deep), init_params(RewardModel(deep), {"inputs": part["inputs"]}))
  with pytest.raises(UserError, match="another shape than the policy"):
    task.loss(params, {"reward_0": other}, {}, part)


def test_text_is_learned_from_in_each_epoch():
  """Its term is that of a language model on the same rows, the mean over all tokens; microbatches add up."""
  task, params, frozen, batch, parts = made()
  spec = task.spec(ROWS, LENGTH)
  assert all({key: leaf.shape for key, leaf in spec.items()} == {k: v.shape for k, v in part.items()} for part in parts)
  together = np.concatenate([part["pretraining_inputs"] for part in parts])
  np.testing.assert_array_equal(together, batch["pretraining_inputs"])
  part = parts[0]
  text = {key.removeprefix("pretraining_"): value for key, value in part.items() if key.startswith("pretraining_")}
  wanted = jax.jit(lambda p: CausalLM(task.model).loss(p, {}, {}, text)[0]["loss"])(params)
  counts = task.counts(part)

  def loss(params, carry, own, rng):
    terms, carry = task.loss(params, frozen, carry, own)
    return weighted_sum(task, terms, counts), (terms, carry)

  (one, terms, _), (two, more, _) = (jax.jit(accumulate(loss, n))(params, {}, part, jax.random.key(0)) for n in (1, 2))
  assert terms["pretraining"].value() == pytest.approx(wanted.value(), rel=1e-5)
  assert float(counts["pretraining"]) == float(terms["pretraining"].count) == float(wanted.count)
  assert task.terms == {"policy": 1.0, "value": 0.1, "pretraining": 2.0}
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, two)
  assert all(terms[key].value() == pytest.approx(more[key].value(), abs=1e-5) for key in terms)


def test_mistakes_are_named():
  reader, tokenizer = mixed()
  with pytest.raises(ValueError, match="where one of the rewards is a ModelReward"):
    policy_of(reader, tokenizer, value="reward", pretraining=1.0)
  for own, changes in (
    (reader, {}),
    (reader, {"pretraining": 1.0, "samples": 2}),
    (reader_of()[0], {"pretraining": 1.0}),
  ):
    with pytest.raises(ValueError, match="pretraining needs data of prompts_with_text"):
      policy_of(own, tokenizer, **changes)
  assert prompts_of(reader, tokenizer)["inputs"].shape == (4, WIDTH)


@pytest.mark.long
def test_a_run_with_both_resumes_bit_for_bit(tmp_path):
  def train(workdir, name, *options):
    arguments = ["train", "--config", f"configs/{name}", "--workdir", str(workdir), "--config.data.length=48"]
    assert main([*arguments, "--config.evals.every=0", "--config.checkpoint.every=2", *options]) == 0

  reward = tmp_path / "reward"
  train(reward, "reward.py:debug", "--config.steps=1", "--config.data.length=96")
  own = [f"--config.data.tokenizer={{'path': '{reward}/tokenizer'}}", "--config.model.length=96", "--config.evals={}"]
  own += [f"--config.task.rewards=[{{'kind': 'lmjax.tasks.rl.rewards:ModelReward', 'path': '{reward}'}}]"]
  own += ["--config.task.value=reward", "--config.batch=4", "--config.log.every=1", "--config.checkpoint.metric=''"][:3]
  name = "ppo.py:preset=instructgpt,text=x,debug"
  own += ["--config.task.minibatches=2"]
  train(tmp_path / "whole", name, *own, "--config.steps=4")
  train(tmp_path / "cut", name, *own, "--config.steps=2")
  train(tmp_path / "cut", name, *own, "--config.steps=4")
  one, other = (RunFolder(tmp_path / run) for run in ("whole", "cut"))
  assert any("heads/value" in key for key in one.leaves)
  assert all(np.array_equal(one.read(key), other.read(key)) for key in one.leaves) and one.leaves == other.leaves
  lines = [json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
  values = [line["pretraining"] for line in lines if "pretraining" in line]
  assert len(values) == 4 and values[-1] < values[0]
