"""Transforms: a chain of two trains what the composition says, and its metrics are logged."""

import json

import jax
import numpy as np
import pytest

from lmjax import config
from lmjax.__main__ import main
from lmjax.compression.base import Identity, ParamTransform
from lmjax.compression.chain import Chain
from lmjax.optim import Optimizer
from lmjax.parallel.mesh import MeshShape
from lmjax.parallel.sharding import Layout
from lmjax.state import make_frozen, make_init
from lmjax.testing import fake_batch, init_state
from lmjax.train import make_step
from lmjax.utils.errors import UserError
from tests.families import tiny_task
from tests.toys import Difference, Multiple

LAYOUT = Layout.build(MeshShape().build(jax.devices()[:1]), "ddp")
SGD = Optimizer(optimizer="sgd", peak_lr=0.1, schedule="constant", weight_decay=0.0, clip=0.0)
CHAIN = Chain({"difference": Difference(), "multiple": Multiple(2.0)})


def test_a_chain_of_two_trains_what_their_composition_says():
  """The model sees base + 2 * trained, so a step of the trained tree moves the model four times as far."""
  task = tiny_task("GPT")
  arguments = (LAYOUT, 4, 16, 0)
  plain, state = (init_state(task, SGD.build(10), transform, *arguments) for transform in (Identity(), CHAIN))
  jax.tree.map(np.testing.assert_array_equal, state.frozen.transform["difference"], plain.params)
  assert state.frozen.transform["multiple"] == {} and state.transform["difference"] == {}
  assert all(not np.any(leaf) for leaf in jax.tree.leaves(state.params))

  def model_params(state):
    return CHAIN.forward(state.params, state.transform, state.frozen.transform)

  jax.tree.map(np.testing.assert_array_equal, model_params(state), plain.params)
  batch, rng = fake_batch(task), jax.random.key(0)
  expected, other = jax.jit(make_step(task, SGD.build(10), Identity()))(plain, batch, rng)
  after, metrics = jax.jit(make_step(task, SGD.build(10), CHAIN))(state, batch, rng)
  assert metrics["loss"].value() == pytest.approx(other["loss"].value(), rel=1e-6)
  assert float(metrics["gradient_norm"]) == pytest.approx(2 * float(other["gradient_norm"]), rel=1e-5)
  moved = jax.tree.map(lambda a, b: a - b, model_params(after), plain.params)
  wanted = jax.tree.map(lambda a, b: 4 * (a - b), expected.params, plain.params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), moved, wanted)
  merged = CHAIN.merge(after.params, after.transform, after.frozen.transform)
  jax.tree.map(np.testing.assert_array_equal, merged, model_params(after))

  assert int(after.transform["multiple"]["updates"]) == 1
  largest = max(float(np.max(np.abs(leaf))) for leaf in jax.tree.leaves(after.params))
  assert float(metrics["multiple_largest"]) == pytest.approx(largest, rel=1e-6)
  norm = np.sqrt(sum(float(np.sum(np.square(leaf))) for leaf in jax.tree.leaves(moved)))
  assert 2 * float(metrics["difference_norm"]) == pytest.approx(norm, rel=1e-5)


def test_what_is_frozen_is_made_again_from_the_seed_or_from_loaded_weights():
  task = tiny_task("GPT")
  init, abstract = make_init(task, SGD.build(10), CHAIN, LAYOUT, 4, 16, 7)
  state, make = init({}), make_frozen(init, abstract)
  jax.tree.map(np.testing.assert_array_equal, make({}), state.frozen.transform)
  table = np.full((128, 32), 0.5, np.float32)
  base = make({"model/embed/table": table})["difference"]["model"]
  np.testing.assert_array_equal(base["embed"]["table"], table)
  same = state.frozen.transform["difference"]["model"]
  np.testing.assert_array_equal(base["positions"]["table"], same["positions"]["table"])


def test_a_chain_is_named_in_a_config():
  kind = "tests.toys:"
  parts = {"base": dict(kind=kind + "Difference"), "twice": dict(kind=kind + "Multiple", factor=3)}
  chain: ParamTransform = config.build(dict(kind="lmjax.compression.chain:Chain", transforms=parts), "transform")
  assert chain == Chain({"base": Difference(), "twice": Multiple(3.0)})
  with pytest.raises(UserError, match="config.transform: transforms"):
    config.build(dict(kind="lmjax.compression.chain:Chain", transforms={}), "transform")


def test_metrics_of_a_transform_are_logged(tmp_path):
  """At every step, of the parameters after its update."""
  arguments = ["train", "--config", "configs/quickstart.py:debug", "--config.steps=3", "--config.evals.every=0"]
  arguments += ["--config.transform.kind=tests.toys:Multiple", "--config.transform.factor=4"]
  assert main([*arguments, "--workdir", str(tmp_path)]) == 0
  lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert [line["step"] for line in lines if "largest" in line] == [1, 2, 3]
  assert len({line["largest"] for line in lines if "largest" in line}) == 3
