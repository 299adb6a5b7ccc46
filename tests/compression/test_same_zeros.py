"""The mask of one model on another: tickets of a pretrained encoder that are moved from task to task."""

import numpy as np
import pytest

from lmjax import storage
from lmjax.__main__ import main
from lmjax.compression.one_shot import OneShot
from lmjax.compression.quantize import Quantize
from lmjax.compression.same_zeros import SameZeros
from lmjax.inference.compress import compress
from lmjax.storage import huggingface
from lmjax.testing import fake_batch, init_params
from lmjax.utils.errors import UserError
from tests.families import tiny_task


def arrays_of(path):
  return {name: np.asarray(array) for name, array in storage.open(path).parameters().items()}


def test_kernels_have_the_zeros_of_the_mask_and_their_own_values(tmp_path):
  task = tiny_task("GPT")
  for seed, name in enumerate(("one", "other")):
    huggingface.save(tmp_path / name, task.model, init_params(task, fake_batch(task), seed=seed))
  compress(storage.open(tmp_path / "one"), tmp_path / "pruned", [OneShot(0.5, targets="mlp/.*kernel$")])
  target = SameZeros(str(tmp_path / "pruned"), targets="kernel$")
  compress(storage.open(tmp_path / "other"), tmp_path / "moved", [target])
  pruned, other, moved = (arrays_of(tmp_path / name) for name in ("pruned", "other", "moved"))
  for name, array in moved.items():
    np.testing.assert_array_equal(
      array, np.where(pruned[name] == 0, 0, other[name]) if "kernel" in name else other[name]
    )
  assert any(np.mean(array == 0) == 0.5 for array in moved.values())
  for path, words in (("one", "has no zeros in its kernels"), ("nothing", "does not exist")):
    with pytest.raises(UserError, match=words):
      compress(storage.open(tmp_path / "other"), tmp_path / "out", [SameZeros(str(tmp_path / path))])
  small = tiny_task("GPT", mlp=32)
  huggingface.save(tmp_path / "small", small.model, init_params(small, fake_batch(small)))
  with pytest.raises(UserError, match="and this model has it of shape"):
    compress(storage.open(tmp_path / "small"), tmp_path / "out", [target])
  compress(storage.open(tmp_path / "other"), tmp_path / "quantized", [target, Quantize()])  # in one command
  assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_a_ticket_of_a_pretrained_model_moves_to_another_task(tmp_path, capsys):
  """The lottery rewinds to the pretrained weights, and so does the other task, with the mask of the first."""
  debug = ["--config", "configs/glue.py:debug", "--config.steps=2"]
  pretrained, tickets = tmp_path / "pretrained", tmp_path / "tickets"
  assert main(["train", *debug, "--workdir", str(pretrained), "--config.seed=3"]) == 0
  start = [f"--config.start.path={pretrained}"]
  options = ["--rounds", "1", "--rate", "0.5", "--controls", "", "--metric", "dev_accuracy"]
  assert main(["lottery", *debug, *start, "--workdir", str(tickets), *options]) == 0
  ticket, moved, other = tickets / "0" / "1" / "ticket", tmp_path / "moved", tmp_path / "other"
  command = ["compress", "--workdir", str(pretrained), "--output", str(moved), "--mask", str(ticket), "--measure", ""]
  assert main(command) == 0
  before, rewound, after = (arrays_of(path) for path in (pretrained, tickets / "0" / "1" / "ticket_start", moved))
  for name, array in after.items():
    np.testing.assert_array_equal(array, rewound[name], err_msg=name)
    kept = array != 0 if name.startswith("model/") and name.endswith("kernel") else np.ones(array.shape, bool)
    np.testing.assert_array_equal(array[kept], before[name][kept], err_msg=name)
  task = ["train", "--config", "configs/glue.py:task=mrpc,debug", "--config.steps=1", "--workdir", str(other)]
  zeros = ["--config.transform.kind=lmjax.compression.keep_zeros:KeepZeros"]
  assert main([*task, f"--config.start.path={moved}", "--config.start.parts=model/.*", *zeros]) == 0
  trained = arrays_of(other)
  kernels = [name for name in after if name.startswith("model/") and name.endswith("kernel")]
  assert kernels and all(np.array_equal(trained[name] == 0, after[name] == 0) for name in kernels)
  assert all(np.mean(after[name] == 0) == pytest.approx(0.5, abs=1e-3) for name in kernels)
