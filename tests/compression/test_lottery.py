"""lmjax lottery: masks of rounds, what the arms start from, and a driver that resumes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import storage
from lmjax.__main__ import main
from lmjax.compression.keep_zeros import KeepZeros
from lmjax.inference import lottery
from lmjax.inference.lottery import Rates
from lmjax.optim import Optimizer
from lmjax.parallel.mesh import MeshShape
from lmjax.parallel.sharding import Layout, is_partitioned
from lmjax.state import named_parameters
from lmjax.storage.run import RunFolder
from lmjax.testing import fake_batch, init_params, init_state
from lmjax.train import make_step
from lmjax.utils import pytree
from lmjax.utils.errors import UserError
from tests.families import tiny_task

LAYOUT = Layout.build(MeshShape().build(jax.devices()[:1]), "ddp")


def kernels_of(family="GPT"):
  """Returns the named parameters of a tiny task and random arrays for them."""
  task = tiny_task(family)
  boxes = pytree.named_leaves(named_parameters(task, 1, 16), is_leaf=is_partitioned)
  return boxes, pytree.named_leaves(init_params(task, fake_batch(task)))


@pytest.mark.parametrize("structure", ["layer", "global"])
def test_rounds_remove_exact_fractions_of_the_smallest_weights_and_never_return_one(structure):
  boxes, weights = kernels_of()
  rates = Rates((("^model/", 0.2),), structure)
  before = rates.masks(boxes, weights, 1)
  trained = {
    n: jnp.where(before[n], x[::-1] if n in before else x, 0.0) if n in before else x for n, x in weights.items()
  }
  after = rates.masks(boxes, trained, 2)
  assert set(after) == {name for name in boxes if name.startswith("model/") and name.endswith("kernel")}
  for masks, rounds in ((before, 1), (after, 2)):
    kept = sum(int(mask.sum()) for mask in masks.values())
    total = sum(mask.size for mask in masks.values())
    np.testing.assert_allclose(kept / total, 0.8**rounds, atol=1e-3)
    assert abs(lottery.remaining(masks) - kept / total) < 1e-6
  for name, mask in after.items():
    assert not np.any(mask & ~before[name])
    magnitudes = np.abs(trained[name])
    if structure == "global":
      continue
    for layer, own in zip(magnitudes, np.asarray(mask), strict=True):
      assert own.mean() == pytest.approx(0.64, abs=0.01) and layer[own].min() >= layer[~own].max()


def test_the_first_pattern_that_matches_has_the_rate():
  boxes, weights = kernels_of()
  masks = Rates((("query", 0.5), ("attention", 0.1))).masks(boxes, weights, 1)
  density = {name.split("/")[-2]: float(mask.mean()) for name, mask in masks.items()}
  assert density["query"] == 0.5 and density["out"] == pytest.approx(0.9, abs=1e-3) and "up" not in density


@pytest.mark.parametrize(
  "arguments", [((("x", 0.0),),), ((("x", 1.0),),), ((("x", 0.1),), "output"), ((("x", 0.1), ("y", 0.2)), "global")]
)
def test_rates_are_checked(arguments):
  with pytest.raises(ValueError):
    Rates(*arguments)


def test_rates_that_match_nothing():
  with pytest.raises(UserError, match="match no kernel; those of this model: model/"):
    Rates((("nothing", 0.1),)).masks(*kernels_of(), 1)


@pytest.mark.parametrize("family", ["GPT", pytest.param("T5", marks=pytest.mark.long)])
def test_zeros_of_the_start_stay_zero_and_nothing_else_does(family):
  task = tiny_task(family)
  transform, batch = KeepZeros("/(up|query)/kernel$"), fake_batch(task)
  optimizer = Optimizer(peak_lr=1e-2, weight_decay=0.0).build(5)
  state = init_state(task, optimizer, transform, LAYOUT, 4, 16, 0)
  params = pytree.named_leaves(state.params)
  boxes = pytree.named_leaves(named_parameters(task, 1, 16), is_leaf=is_partitioned)
  kept = Rates((("/(up|query)/", 0.5),)).masks(boxes, params, 1)
  start = {name: jnp.where(kept[name], x, 0.0) if name in kept else x for name, x in params.items()}
  boxed = {name: box.replace(value=start[name]) for name, box in boxes.items()}
  trained, masks, _ = transform.init(pytree.map_named(lambda name, leaf: boxed[name], state.params))
  trained = jax.tree.map(lambda box: box.value, trained, is_leaf=is_partitioned)
  state = state.replace(params=trained, transform=masks)
  state, metrics = jax.jit(make_step(task, optimizer, transform))(state, batch, jax.random.key(0))
  assert metrics["sparsity"] == pytest.approx(0.5, abs=1e-3)
  for name, after in pytree.named_leaves(state.params).items():
    if name in kept:
      np.testing.assert_array_equal(np.asarray(after) != 0, kept[name], err_msg=name)


def test_steps_to_a_loss():
  assert lottery.steps_to({10: 3.0, 20: 2.0, 30: 1.0}, 2.0) == 20 and lottery.steps_to({10: 3.0}, 2.0) is None


@pytest.mark.parametrize(
  "options, words",
  [
    (["--rounds", "0"], "--rounds is at least 1"),
    (["--rewind", "20"], "--rewind from 0 to below 20"),
    (["--rate", "2"], "a rate is above 0 and below 1"),
    (["--rate", "x"], "--rate: could not convert"),
    (["--controls", "dense"], "--controls are new_weights and random_mask"),
  ],
)
def test_options_are_checked(options, words, tmp_path, capsys):
  arguments = ["lottery", "--config", "configs/lottery.py:debug", "--workdir", str(tmp_path / "runs"), *options]
  assert main(arguments) == 2
  assert words in capsys.readouterr().err and not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_arms_start_from_what_they_are_called_by_and_a_second_command_repeats_nothing(tmp_path, capsys):
  folder = tmp_path / "runs"
  arguments = ["lottery", "--config", "configs/lottery.py:debug", "--config.steps=2", "--config.evals.every=1"]
  arguments += ["--workdir", str(folder), "--rate", "0.5", "--rewind", "1"]
  assert main([*arguments, "--rounds", "1"]) == 0
  dense, arms = folder / "0" / "0" / "dense", folder / "0" / "1"
  arrays = lambda path, step=None: {n: np.asarray(a) for n, a in storage.open(path, step).parameters().items()}  # noqa: E731
  rewound, final = arrays(dense, 1), arrays(dense)
  starts = {arm: arrays(arms / f"{arm}_start") for arm in (lottery.TICKET, *lottery.CONTROLS)}
  kernels = [name for name in rewound if name.startswith("model/") and name.endswith("kernel")]
  assert all(np.array_equal(starts["ticket"][name], rewound[name]) for name in rewound if name not in kernels)
  for name in kernels:
    mask = starts["ticket"][name] != 0
    assert mask.mean() == 0.5 and np.array_equal(starts["ticket"][name][mask], rewound[name][mask]), name
    assert np.abs(final[name])[mask].mean() > np.abs(final[name])[~mask].mean()
    assert np.array_equal(starts["new_weights"][name] != 0, mask)
    assert not np.array_equal(starts["new_weights"][name], starts["ticket"][name])
    other = starts["random_mask"][name] != 0
    assert np.array_equal(other.reshape(2, -1).sum(1), mask.reshape(2, -1).sum(1)) and not np.array_equal(other, mask)
    assert np.array_equal(starts["random_mask"][name][other], rewound[name][other])
    for arm in starts:
      assert np.array_equal(arrays(arms / arm)[name] != 0, starts[arm][name] != 0), (arm, name)
  rows = json.loads((folder / "lottery.json").read_text())
  assert [(row["round"], row["arm"]) for row in rows] == [(0, "dense"), *((1, arm) for arm in starts)]
  assert [row["remaining"] for row in rows] == pytest.approx([1.0, 0.5, 0.5, 0.5])
  assert (folder / "lottery.png").stat().st_size > 1000
  times = {path: path.stat().st_mtime_ns for path in folder.rglob("metrics.jsonl")}
  capsys.readouterr()
  assert main([*arguments, "--rounds", "2", "--controls", ""]) == 0
  assert capsys.readouterr().out.count("is finished") == 2  # the dense model and the ticket of the first round
  assert all(path.stat().st_mtime_ns == time for path, time in times.items())
  assert RunFolder(folder / "0" / "2" / "ticket").step == 2 and len(times) == 4
  for other in (["--rate", "0.4"], ["--rewind", "0"], ["--structure", "global"]):
    assert main([*arguments, *other]) == 2, "the folder's runs are those of other masks"
    assert "choose another --workdir" in capsys.readouterr().err


def test_of_a_metric_after_a_minus_the_highest_is_the_best():
  values = {10: 0.5, 20: 0.8, 30: 0.7}
  assert lottery.steps_to(values, 0.7, "-dev_accuracy") == 20 and lottery.steps_to(values, 0.9, "-x") is None
  assert lottery.steps_to(values, 0.6, "loss") == 10 and lottery.better("-x")(values.values()) == 0.8


def test_controls_are_compared_with_the_ticket_of_their_seed():
  rows = [dict(seed=seed, round=0, arm="dense", remaining=1.0, loss=1.0) for seed in (0, 1, 2)]
  for seed, (ticket, control) in enumerate([(1.0, 2.0), (3.0, 4.5), (5.0, 5.5)]):
    rows += [dict(seed=seed, round=1, arm="ticket", remaining=0.8, loss=ticket)]
    rows += [dict(seed=seed, round=1, arm="random_mask", remaining=0.8, loss=control)]
  table = lottery.comparison(rows, "loss")
  assert table.rows[0] == ("0", "100.0%", "1.0000", "", "")
  # The differences 1, 1.5 and 0.5 have a standard deviation of 0.5, and Student's t of two degrees is 4.3027.
  assert table.rows[1] == ("1", "80.0%", "3.0000", "4.0000", f"+1.0000 +- {4.3027 * 0.5 / 3**0.5:.4f}")


@pytest.mark.parametrize(
  "options, words",
  [
    (["--rate", "nothing=0.5"], "match no kernel"),
    (["--rate", "(=0.5"], "not a regular expression"),
    (["--metric", "accuracy"], "is not one of the config's evaluators, which log validation_..."),
    (["--controls", "other"], "not 'other'"),
    (["--seeds", "3:1"], "give FIRST:END"),
    (["--rewind", "9999"], "below 20 steps"),
  ],
)
def test_what_cannot_be_is_noticed_before_a_run_starts(options, words, tmp_path, capsys):
  command = ["lottery", "--config", "configs/lottery.py:debug", "--workdir", str(tmp_path / "runs"), *options]
  assert main(command) == 2 and not (tmp_path / "runs").exists()
  errors = capsys.readouterr().err.strip()
  assert words in errors and "\n" not in errors
