"""Reward models that are encoders, which read [CLS], and encoder-decoders, whose decoder reads the answer."""

import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.data.chat.template import Message
from lmjax.data.objectives.preferences import Preferences
from lmjax.data.sources.preferences import Preference
from lmjax.data.tokenizers.registry import TokenizerConfig
from lmjax.evals.reward_accuracy import RewardAccuracy
from lmjax.parallel.mesh import MeshShape
from lmjax.parallel.sharding import Layout
from lmjax.tasks.base import FrozenModel
from lmjax.tasks.dpo import DPO
from lmjax.tasks.reward import RewardModel
from lmjax.tasks.rl.rewards import ModelReward
from lmjax.tasks.rl.rollout import Rollout
from lmjax.testing import fake_batch, init_params
from lmjax.utils.errors import UserError
from tests.families import tiny_task
from tests.tasks.rl.policies import noisy

PAIRS = [("who is it", ("me", "it is you, who else")), ("c", ("yes", "no")), ("and then?", ("no more of it", "d"))]
LENGTH = 128


def made(family):
  """Returns a reward model of a family, its parameters, its reader, tokenizer and two rows of comparisons."""
  source = [Preference((Message("user", prompt),), own, f"test:{i}") for i, (prompt, own) in enumerate(PAIRS)]
  reader = Preferences(source, source, LENGTH, TokenizerConfig("bpe", 300), groups=2)
  tokenizer = reader.make_tokenizer()
  model = tiny_task(family, vocabulary=tokenizer.size, length=LENGTH, depth=2).model
  reader = reader.for_model(model)
  task = RewardModel(model, **reader.shared(tokenizer))
  batch = {key: jnp.asarray(value) for key, value in reader.validate(tokenizer, 2)[0].items() if key != "bytes"}
  spec = task.spec(2, LENGTH)
  assert {key: (leaf.shape, leaf.dtype) for key, leaf in spec.items()} == {
    key: (batch[key].shape, batch[key].dtype) for key in batch
  }
  return task, noisy(init_params(task, fake_batch(task, 2, LENGTH))), reader, tokenizer, batch


@pytest.mark.parametrize("family", ["BERT", "T5"])
def test_a_reward_is_that_of_the_answer_alone_in_training_and_in_a_rollout(family):
  """Of rows with several comparisons, and of an answer that a policy wrote, whose prompt has padding on the left."""
  task, params, reader, tokenizer, batch = made(family)
  decoder = "decoder_" if family == "T5" else ""
  rewards = np.asarray(jax.jit(lambda p: task.forward(p, batch).logits)(params)).reshape(2, 2, 2)
  written, wanted = [], []
  for row, number in itertools.product(range(2), range(1, 5)):
    own = {key: np.asarray(value[row]) for key, value in batch.items()}
    at, source = own[f"{decoder}segments"] == number, own["segments"] == number
    if not at.any():
      assert rewards[row].ravel()[number - 1] == 0
      continue
    weights, ids = own["weights"][at], own["targets"][at][own["weights"][at] > 0]
    assert tokenizer.fast.decode(ids.tolist(), skip_special_tokens=False).endswith("<|im_end|>")
    assert own[f"{decoder}inputs"][at][0] == tokenizer.start and own["inputs"][source].size
    prompt = own["inputs"][source] if decoder else own["inputs"][at][1 : 1 + int(np.argmax(weights))]
    written.append((prompt, ids))
    wanted.append(rewards[row].ravel()[number - 1])
  assert len(written) == 6
  prompt, ids = written[0]
  alone = {"inputs": [tokenizer.start, *prompt, *ids]}
  if decoder:
    alone = {"inputs": prompt, "decoder_inputs": [tokenizer.start, *ids]}
  alone = {key: jnp.asarray(value)[None] for key, value in alone.items()}
  vectors = jax.jit(lambda p: task.hidden(p, alone).tokens)(params)[:, -1 if decoder else 0]
  np.testing.assert_allclose(task.head("reward", params, vectors)[0, 0], wanted[0], atol=1e-5)
  prompts, valid, answers = np.zeros((6, 64), np.int32), np.zeros((6, 64), bool), np.full((6, 24), -1, np.int32)
  for i, (prompt, ids) in enumerate(written):
    prompts[i, -len(prompt) :], valid[i, -len(prompt) :], answers[i, : len(ids)] = prompt, True, ids
  rollout = Rollout(prompts, valid, answers, tokenizer.start if decoder else None)
  scores = ModelReward(path="r").scores(FrozenModel(task, params), [rollout.rows()], list)
  np.testing.assert_allclose(scores, wanted, atol=1e-5)
  means = jax.jit(lambda p: task.loss(p, {}, {}, batch)[0])(params)
  pairs = np.array(wanted).reshape(-1, 2)
  assert means["loss"].value() == pytest.approx(np.mean(np.logaddexp(0, pairs[:, 1] - pairs[:, 0])), rel=1e-4)
  layout = Layout.build(MeshShape().build(jax.devices()[:1]), "ddp")
  context = types.SimpleNamespace(task=task, data=reader, tokenizer=tokenizer, batch=2, layout=layout)
  measured = RewardAccuracy(resamples=0).prepare(context)(params)
  assert measured["loss"] == pytest.approx(means["loss"].value(), rel=1e-4)
  assert measured["length_accuracy"] == pytest.approx(means["length_accuracy"].value())


def test_kinds_that_do_not_go_together_are_named():
  task, params, *_ = made("T5")
  with pytest.raises(ValueError, match="if they are decoders"):
    DPO(task.model)
  rollout = Rollout(np.ones((1, 4), np.int32), np.ones((1, 4), bool), np.ones((1, 2), np.int32))
  with pytest.raises(UserError, match="both be encoder-decoders, or neither"):
    ModelReward(path="r").scores(FrozenModel(task, params), [rollout.rows()], list)
