"""Pruning: exactly as many zeros as asked for, where numpy puts them; masks stay through training and resume."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from lmjax import sections, storage
from lmjax.__main__ import main
from lmjax.compression import masks
from lmjax.compression.base import ParamTransform
from lmjax.compression.calibrate import calibrate
from lmjax.compression.one_shot import OneShot
from lmjax.compression.prune import Prune
from lmjax.compression.quantize import Quantize
from lmjax.logs import read_metrics
from lmjax.optim import Optimizer
from lmjax.parallel.mesh import MeshShape
from lmjax.parallel.sharding import Layout, LogicallyPartitioned, is_partitioned, use_layout
from lmjax.state import named_parameters
from lmjax.testing import fake_batch, init_params, init_state
from lmjax.train import make_step
from lmjax.utils import pytree
from lmjax.utils.errors import UserError
from tests.families import FAMILIES, tiny_task

LAYOUT = Layout.build(MeshShape().build(jax.devices()[:1]), "ddp")
ADAMW = Optimizer(peak_lr=1e-2, warmup=0, weight_decay=0.1)
MARKS = {"GPT": (), "T5": (pytest.mark.long,), "LSTM": ()}  # the others are slow
EACH = [pytest.param(family, marks=MARKS.get(family, (pytest.mark.slow,))) for family in FAMILIES]
STRUCTURES = ["layer", "output", "global", "2:4", "1:8"]


def boxed(task):
  """Returns new parameters with their axis names, by path names."""
  named = pytree.named_leaves(named_parameters(task, 4, 16), is_leaf=is_partitioned)
  params = pytree.named_leaves(init_params(task, fake_batch(task)))
  return {name: box.replace(value=params[name]) for name, box in named.items()}


def groups(array, names, structure):
  """Returns the values that are compared with each other, one row for each group."""
  x = np.asarray(masks.matrices(jnp.asarray(array), names))
  if structure == "layer":
    return x.reshape(len(x), -1)
  x = np.moveaxis(x, 1, -1)  # [layers, outputs, inputs]
  return x.reshape(-1, masks.kept_of(structure)[1] or x.shape[-1])


@pytest.mark.parametrize("count", [0, 1, 3, 7])
@pytest.mark.parametrize("axis", [0, 1])
def test_exactly_the_lowest_are_found(count, axis):
  """Of equal scores too, as many as asked for; also where the count is not known to the compiler."""
  rng = np.random.default_rng(count)
  for scores in (rng.standard_normal((7, 7)), rng.integers(0, 3, (7, 7)), np.zeros((7, 7))):
    for wanted in (count, jnp.asarray(count)):
      found = np.asarray(masks.lowest(jnp.asarray(scores, jnp.float32), wanted, axis))
      assert np.all(found.sum(axis) == count)
      kept = np.where(found, np.inf, scores).min(axis)
      assert np.all(np.where(found, scores, -np.inf).max(axis) <= kept)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("family", EACH)
def test_sparsity_is_exact_in_every_group(family, structure):
  task, sparsity = tiny_task(family), 0.3
  params = boxed(task)
  method = OneShot(sparsity, "magnitude", structure, targets="^model/.*(up|out|query|input)/kernel$")
  pruned = method.apply(task, params)
  changed = {name for name in params if pruned[name] is not params[name].value}
  assert changed and all(name.endswith("kernel") for name in changed)
  everything = []
  for name in changed:
    before, after = (groups(x, params[name].names, structure) for x in (params[name].value, pruned[name]))
    zero = after == 0
    np.testing.assert_array_equal(after[~zero], before[~zero])
    everything.append((np.abs(before), zero))
    if structure == "global":
      continue
    kept, of = masks.kept_of(structure)
    assert np.all(zero.sum(-1) == (of - kept if of else round(sparsity * before.shape[-1]))), name
    for scores, gone in zip(np.abs(before), zero, strict=True):
      assert not gone.any() or scores[gone].max() <= scores[~gone].min(), name
  if structure == "global":
    scores, gone = (np.concatenate([pair[i].ravel() for pair in everything]) for i in (0, 1))
    assert gone.sum() == round(sparsity * gone.size) and scores[gone].max() <= scores[~gone].min()


def test_random_scores_do_not_look_at_the_weights():
  task = tiny_task("GPT")
  params = boxed(task)
  zeros = lambda seed: {n: np.asarray(x) == 0 for n, x in OneShot(0.5, "random", seed=seed).apply(task, params).items()}  # noqa: E731
  one, same, other = zeros(0), zeros(0), zeros(1)
  name = "model/stack/layers/mlp/up/kernel"
  np.testing.assert_array_equal(one[name], same[name])
  assert np.any(one[name] != other[name]) and one[name].mean() == 0.5


def as_tree(params):
  return {"model": {}, "heads": {}} | traverse_util.unflatten_dict(params, sep="/")


@pytest.mark.parametrize(
  "family", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("GPT", "BERT")),
             pytest.param("T5", marks=pytest.mark.long)],
)  # fmt: skip
def test_kernels_see_what_they_read(family):
  """By the layers' own taps: the first kernels of a layer read its normalised input, which numpy computes again."""
  task = tiny_task(family)
  params, batch, seen = boxed(task), fake_batch(task), {}
  kernels = {name for name in params if name.endswith("kernel") and name.startswith("model/")}

  def change(name, kernel, axes, statistic):
    seen.setdefault(name, []).append(np.asarray(statistic))
    return kernel

  plain = task.hidden(as_tree({name: box.value for name, box in params.items()}), batch).tokens
  changed, unseen = calibrate(task, params, kernels, batch, lambda x: jnp.sum(x * x, axis=0), change)
  assert not unseen and set(changed) == kernels
  for name, array in changed.items():
    np.testing.assert_array_equal(array, params[name].value, err_msg=name)
    assert len(seen[name]) == (len(array) if params[name].names[0] == "layers" else 1), name
  query = min(name for name in kernels if name.endswith("attention/query/kernel") and "cross" not in name)
  key = query.replace("query", "key")
  np.testing.assert_array_equal(seen[query], seen[key])  # they read the same
  assert len(plain)


def test_wanda_is_that_of_numpy_layer_by_layer():
  """A decoder of one kernel a layer: the second reads what the pruned first gives."""
  task = tiny_task("GPT")
  params, batch = boxed(task), fake_batch(task)
  name = "model/stack/layers/mlp/up/kernel"
  pruned = OneShot(0.5, "wanda", "output", targets=name).apply(task, params, batch)

  inputs = {}

  def remember(n, kernel, axes, statistic):
    inputs.setdefault(n, []).append(np.asarray(statistic, np.float64))
    return kernel

  current = {n: box.replace(value=pruned[n]) for n, box in params.items()}
  calibrate(task, current, {name}, batch, lambda x: jnp.sum(x * x, axis=0), remember)
  before, after = np.asarray(params[name].value, np.float64), np.asarray(pruned[name])
  for layer, squares in enumerate(inputs[name]):
    scores = np.abs(before[layer]) * np.sqrt(squares)[:, None]
    order = np.argsort(scores, axis=0)
    expected = before[layer].copy()
    np.put_along_axis(expected, order[: len(order) // 2], 0.0, axis=0)
    np.testing.assert_array_equal(after[layer], expected.astype(np.float32))


@pytest.mark.parametrize("score", ["movement", "taylor"])
def test_masks_by_gradient_are_those_of_numpy(score):
  """Sums of weight times gradient over the steps so far, of the weights after each; what is gone stays gone."""
  transform = Prune(0.5, score=score, end=3, every=1)
  rng = np.random.default_rng(0)
  kernel = lambda: LogicallyPartitioned(jnp.asarray(rng.standard_normal((4, 6)), jnp.float32), ("width", "mlp"))  # noqa: E731
  params, state, _ = transform.init({"model": {"up": {"kernel": kernel()}}})
  sums, gone = np.zeros((4, 6)), np.zeros((4, 6), bool)
  for step in range(5):
    weights, gradient = kernel().value, kernel().value
    tree = lambda x: {"model": {"up": {"kernel": x}}}  # noqa: E731
    params, state = transform.update(tree(weights), tree(gradient), state, jnp.int32(step))
    product = np.asarray(weights, np.float64) * np.asarray(gradient, np.float64)
    sums += -product if score == "movement" else np.abs(product)
    if step <= 3:
      count = round(24 * 0.5 * (1 - (1 - step / 3) ** 3))
      gone.ravel()[np.argsort(np.where(gone, -np.inf, sums).ravel(), kind="stable")[:count]] = True
    np.testing.assert_array_equal(params["model"]["up"]["kernel"] == 0, gone)
  assert gone.sum() == 12


def test_masks_by_gradient_need_an_end():
  with pytest.raises(ValueError, match="needs an end"):
    Prune(0.5, score="movement")


@pytest.mark.long
def test_an_lstm_is_pruned_by_what_can_be_seen():
  """Its recurrent kernels are read whole: magnitude ranks them."""
  task = tiny_task("LSTM")
  params, batch = boxed(task), fake_batch(task)
  wanda = OneShot(0.5, "wanda", "output").apply(task, params, batch)
  magnitude = OneShot(0.5, "magnitude", "output").apply(task, params)
  kernels = [name for name in params if name.endswith("kernel") and name.startswith("model/")]
  for name in kernels:
    assert np.mean(np.asarray(wanda[name]) == 0) == 0.5, name
    assert np.array_equal(wanda[name], magnitude[name]) == name.endswith(("hidden/kernel", "project/kernel")), name


@pytest.mark.parametrize("family", EACH)
@pytest.mark.parametrize(
  "transform",
  [
    pytest.param(Prune(0.5), marks=pytest.mark.slow, id="fixed"),
    pytest.param(Prune(0.75, "global", end=3, every=1), id="growing"),
    pytest.param(Prune(0.75, score="movement", end=3, every=1), marks=pytest.mark.long, id="movement"),
  ],
)
def test_masks_stay_in_training(family, transform):
  """Zeros stay zero although the optimizer has momentum; the sparsity is in the metrics, and grows to its end."""
  task = tiny_task(family)
  kernels = {name for name, _ in pytree.named_leaves(named_parameters(task, 4, 16)).items() if "kernel" in name}
  sparsities = []
  with use_layout(LAYOUT):
    state = init_state(task, ADAMW.build(10), transform, LAYOUT, 4, 16, 0)
    step = jax.jit(make_step(task, ADAMW.build(10), transform))
    for i in range(5):
      before = pytree.named_leaves(state.transform["masks"])
      state, metrics = step(state, fake_batch(task, seed=i), jax.random.key(0))
      assert bool(metrics["finite"])
      kept, params = pytree.named_leaves(state.transform["masks"]), pytree.named_leaves(state.params)
      for name, mask in kept.items():
        assert not np.any(mask & ~before[name]), "what is gone stays gone"
        np.testing.assert_array_equal(np.asarray(params[name])[~np.asarray(mask)], 0.0)
      total = sum(mask.size for mask in kept.values())
      zeros = total - sum(int(mask.sum()) for mask in kept.values())
      sparsities.append(zeros / total)
      np.testing.assert_allclose(transform.metrics(state.params, state.transform)["sparsity"], zeros / total, rtol=1e-6)
  assert kernels and sparsities[-1] == pytest.approx(transform.sparsity, abs=0.01)
  assert (sparsities[0] < sparsities[-1]) == bool(transform.end)
  merged = pytree.named_leaves(transform.merge(state.params, state.transform, {}))
  for name, array in params.items():
    np.testing.assert_array_equal(merged[name], array)


@pytest.mark.long
def test_a_pruned_run_resumes_with_its_masks(tmp_path):
  """Bit for bit, in the middle of the schedule; every command opens it with zeros, and compress stores it small."""
  options = ["--config", "configs/quickstart.py:debug", "--config.optim.schedule=constant", "--config.optim.warmup=0"]
  options += ["--config.transform.kind=lmjax.compression.prune:Prune", "--config.transform.sparsity=0.6"]
  options += ["--config.transform.end=4", "--config.transform.every=1", "--config.log.every=1"]
  for folder, steps in (("run", 3), ("run", 6), ("whole", 6)):
    assert main(["train", *options, f"--config.steps={steps}", "--workdir", str(tmp_path / folder)]) == 0
  one, other = (storage.open(tmp_path / folder) for folder in ("run", "whole"))
  for name in one.leaves:
    np.testing.assert_array_equal(one.read(name), other.read(name), err_msg=name)
  params = {name: np.asarray(array) for name, array in one.parameters().items()}
  kernels = [name for name in params if name.startswith("model/") and name.endswith("kernel")]
  for name in kernels:
    layers = params[name].reshape(params[name].shape[0], -1) if "layers" in name else params[name].reshape(1, -1)
    assert np.all((layers == 0).sum(-1) == round(0.6 * layers.shape[-1])), name
  values = [line["sparsity"] for line in read_metrics(tmp_path / "run") if "sparsity" in line]
  assert values[0] < values[-1] == pytest.approx(0.6, abs=1e-3)
  command = ["compress", "--workdir", str(tmp_path / "run"), "--output", str(tmp_path / "small")]
  assert main([*command, "--quantize", "int8", "--measure", ""]) == 0
  small = storage.open(tmp_path / "small").parameters()
  for name in kernels:
    assert np.mean(np.asarray(small[name]) == 0) >= 0.59


@pytest.mark.parametrize(
  "settings, message",
  [
    (dict(sparsity=1.0), "at least 0 and below 1"),
    (dict(sparsity=-0.1), "sparsity must be at least 0"),
    (dict(sparsity=0.5, structure="rows"), "the structure is"),
    (dict(sparsity=0.5, structure="0:4"), "the structure is"),
    (dict(sparsity=0.5, structure="2:4", end=3), "needs the structure layer or global"),
    (dict(sparsity=0.5, score="wanda"), "the score is magnitude, random, movement or taylor"),
    (dict(sparsity=0.5, begin=5, end=5), "end comes after begin"),
    (dict(sparsity=0.5, targets="("), "not a regular expression"),
  ],
)
def test_settings_are_checked(settings, message):
  with pytest.raises(UserError, match=message) as error:
    sections.build(dict(kind="lmjax.compression.prune:Prune") | settings, "transform", None, ParamTransform, seed=1)
  assert "\n" not in str(error.value)


def test_what_cannot_be_pruned():
  task = tiny_task("GPT")
  params = boxed(task)
  quantized = {n: params[n].replace(value=x) for n, x in Quantize().apply(task, params).items()}
  for method, given, message in (
    (OneShot(0.5, targets="nothing"), params, "matches no kernel"),
    (OneShot(0.5), quantized, "prune it before it is quantized"),
    (OneShot(0.5, "wanda", "output"), params, "needs calibration data"),
    (OneShot(0.5, structure="2:3"), params, "2:3 does not divide"),
  ):
    with pytest.raises(UserError, match=message) as error:
      method.apply(task, given)
    assert "\n" not in str(error.value)
  with pytest.raises(UserError, match="matches no kernel"):
    init_state(task, ADAMW.build(1), Prune(0.5, targets="nothing"), LAYOUT, 4, 16, 0)
