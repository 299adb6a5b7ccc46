"""What is kept, and what a checkpoint holds."""

import jax
import numpy as np
import pytest

from lmjax import checkpoint
from lmjax.compression.base import Identity
from lmjax.optim import Optimizer
from lmjax.parallel.mesh import MeshShape
from lmjax.parallel.sharding import Layout
from lmjax.state import init_state
from lmjax.tasks.causal_lm import CausalLM
from lmjax.testing import tiny_decoder
from lmjax.utils.errors import UserError


def state(abstract=False):
  task = CausalLM(tiny_decoder(depth=1))
  layout = Layout.build(MeshShape().build(jax.devices()[:1]), "ddp")
  return init_state(task, Optimizer().build(9), Identity(), layout, 2, 8, 0, abstract=abstract)


def test_the_latest_and_the_best_are_kept_and_come_back_whole(tmp_path):
  saved = state()
  wanted = checkpoint.data_state(jax.random.key(5), np.arange(6).reshape(3, 2), 0)
  checkpoints = checkpoint.Checkpoints(tmp_path, checkpoint.CheckpointConfig(keep=2, best=1))
  for step, loss in ((1, 3.0), (2, 1.0), (3, None), (4, 2.0), (5, 2.5)):
    saved = saved.replace(step=jax.numpy.int32(step))
    checkpoints.save(step, saved, wanted, loss)
  checkpoints.close()

  again = checkpoint.Checkpoints(tmp_path)
  assert again.steps() == [2, 4, 5]
  restored, data = again.restore(state(abstract=True), checkpoint.data_state(jax.random.key(0), np.zeros((3, 2)), 0))
  again.close()
  jax.tree.map(np.testing.assert_array_equal, restored, saved)
  jax.tree.map(np.testing.assert_array_equal, data, wanted)
  params, step = checkpoint.load(tmp_path, {"params": state(abstract=True).params}, 2)
  assert step == 2
  jax.tree.map(np.testing.assert_array_equal, params["params"], saved.params)


def test_missing_checkpoints_are_refused(tmp_path):
  wanted = {"params": state(abstract=True).params}
  with pytest.raises(UserError, match="no checkpoint found in"):
    checkpoint.load(tmp_path, wanted)
  checkpoints = checkpoint.Checkpoints(tmp_path)
  checkpoints.save(1, state(), checkpoint.data_state(jax.random.key(5), np.zeros((3, 2)), 0), None)
  checkpoints.close()
  with pytest.raises(UserError, match="no step 7; it has 1"):
    checkpoint.load(tmp_path, wanted, 7)
