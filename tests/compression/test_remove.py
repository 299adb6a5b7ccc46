"""Structured pruning: what is removed, that the rest computes the same, and that the result is a model like others."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from lmjax import storage
from lmjax.__main__ import main
from lmjax.compression.quantize import Quantize
from lmjax.compression.remove import AXES, Remove
from lmjax.inference.compress import compress
from lmjax.parallel.sharding import is_partitioned
from lmjax.state import named_parameters
from lmjax.storage import huggingface
from lmjax.tasks.base import weighted_sum
from lmjax.tasks.image_lm import ImageLM
from lmjax.testing import fake_batch, init_params
from lmjax.utils import pytree
from lmjax.utils.errors import UserError
from tests.families import tiny_image_decoder, tiny_task

GROUPED = dict(kv_heads=2)
CASES = [
  ("GPT", "heads", {}), ("Llama", "heads", GROUPED), ("BERT", "mlp", {}), ("T5", "heads", {}), ("GPT", "layers", {}),
  ("Llama", "mlp", {}), ("T5", "layers", {}), ("T5", "mlp", {}), ("BERT", "heads", {}), ("BART", "heads", {}),
  ("ModernBERT", "heads", {}), ("DeBERTa", "heads", {}), ("ALBERT", "heads", {}), ("Transformer", "heads", {}),
]  # fmt: skip
FAST = (0, 1, 2, 4)
CASES = [case if i in FAST else pytest.param(*case, marks=pytest.mark.long) for i, case in enumerate(CASES)]


def boxes_of(task, params):
  named = pytree.named_leaves(named_parameters(task, 1, 16), is_leaf=is_partitioned)
  arrays = pytree.named_leaves(params)
  return {name: box.replace(value=arrays[name]) for name, box in named.items()}


def noisy(task, seed=0):
  rng = np.random.default_rng(seed)
  params = init_params(task, fake_batch(task))
  return jax.tree.map(lambda p: p + 0.1 * rng.standard_normal(p.shape).astype(np.float32), params)


def smaller(task, changes):
  return dataclasses.replace(task, model=type(task.model)(dataclasses.replace(task.model.config, **changes)))


def tree(arrays):
  return {"model": {}, "heads": {}} | traverse_util.unflatten_dict(arrays, sep="/")


def without(box, axes, units, lost):
  """Returns a parameter in which some units of an axis are zero."""
  for position, axis in enumerate(box.names):
    if axis in axes:
      each = box.value.shape[position] // (units or box.value.shape[position])
      index = [slice(None)] * box.value.ndim
      index[position] = np.concatenate([np.arange(unit * each, (unit + 1) * each) for unit in lost])
      return box.value.at[tuple(index)].set(0.0)
  return box.value


@pytest.mark.parametrize("family, structure, changes", CASES)
def test_units_without_weights_leave_and_the_model_computes_the_same(family, structure, changes):
  task = tiny_task(family, **changes)
  config = task.model.config
  boxes, batch = boxes_of(task, noisy(task)), fake_batch(task)
  units = getattr(config, "kv_heads", config.heads) if structure == "heads" else None
  lost = [1] if structure == "layers" or units == 2 else [0, 2]
  axes = AXES[structure]
  kernels = {n: b for n, b in boxes.items() if structure != "layers" or n.endswith(("kernel", "bias"))}
  kernels = {n: b for n, b in kernels.items() if "norm" not in n and not n.endswith("table")}
  boxes |= {name: box.replace(value=without(box, axes, units, lost)) for name, box in kernels.items()}
  total = {"heads": units, "mlp": config.mlp, "layers": config.depth}[structure]
  changed, arrays = Remove(structure, len(lost) / total).apply(task, boxes)
  after = smaller(task, changed)
  assert {"heads": "heads", "mlp": "mlp", "layers": "depth"}[structure] in changed
  named = pytree.named_leaves(named_parameters(after, 1, 16), is_leaf=is_partitioned)
  assert {name: array.shape for name, array in arrays.items()} == {name: b.value.shape for name, b in named.items()}
  run = lambda task, arrays: jax.jit(lambda p: task.forward(p, batch).hidden)(tree(arrays))  # noqa: E731
  before = run(task, {name: box.value for name, box in boxes.items()})
  np.testing.assert_allclose(run(after, arrays), before, atol=2e-5)


WIDTHS = ["Llama", "BERT", "T5", "GPT", "LSTM", "ELMo", "ModernBERT", "DeBERTa", "BART"]
WIDTHS = [name if name in ("Llama", "BERT") else pytest.param(name, marks=pytest.mark.long) for name in WIDTHS]


@pytest.mark.parametrize("family", WIDTHS)
def test_the_same_channels_leave_everywhere(family):
  """Where they are zero and norms divide by the root of a mean square, only that mean changes."""
  exact = family in ("Llama", "T5", "LSTM")
  task = tiny_task(family, **({"epsilon": 1e-12} if exact and family != "LSTM" else {}))
  boxes, batch, lost = boxes_of(task, noisy(task)), fake_batch(task), [3, 4, 30]
  boxes |= {name: box.replace(value=without(box, AXES["width"], None, lost)) for name, box in boxes.items()}
  changed, arrays = Remove("width", len(lost) / 32).apply(task, boxes)
  assert changed["width"] == 29 and set(changed) <= {"width", "head_size"}
  after = smaller(task, changed)
  named = pytree.named_leaves(named_parameters(after, 1, 16), is_leaf=is_partitioned)
  assert {name: array.shape for name, array in arrays.items()} == {name: b.value.shape for name, b in named.items()}
  run = lambda task, arrays: jax.jit(lambda p: task.forward(p, batch).hidden)(tree(arrays))  # noqa: E731
  for name, box in boxes.items():
    squared = name.startswith(("model/pooler/", "heads/masked_lm/dense/"))
    axes = [i for i, axis in enumerate(box.names) if axis == "width" or (axis == "output" and squared)]
    wanted = functools.reduce(lambda x, axis: np.delete(x, lost, axis), axes, np.asarray(box.value))
    scale = (29 / 32) ** 0.5 if family == "T5" and name == "model/decoder_norm/scale" else 1.0
    np.testing.assert_allclose(arrays[name], scale * wanted, rtol=1e-6, err_msg=name)
  assert bool(jnp.all(jnp.isfinite(run(after, arrays))))
  if exact:
    arrays |= {name: (32 / 29) ** 0.5 * array for name, array in arrays.items() if name.endswith("norm/scale")}
    before = run(task, {name: box.value for name, box in boxes.items()})
    np.testing.assert_allclose(run(after, arrays), np.delete(before, lost, axis=-1), atol=2e-5)


def test_taylor_scores_of_channels_are_those_of_all_that_read_them():
  task = tiny_task("Llama")
  boxes, batch = boxes_of(task, noisy(task)), fake_batch(task, seed=1)
  arrays = {name: box.value for name, box in boxes.items()}
  reads = ("query/kernel", "key/kernel", "value/kernel", "up/kernel", "gate/kernel", "unembed/table")
  reading = [name for name in arrays if name.endswith(reads)]

  @jax.jit
  @jax.grad
  def slope(factors):
    shapes = {name: (1, 32) if name.endswith("table") else (1, 32, *[1] * (arrays[name].ndim - 2)) for name in reading}
    changed = {name: arrays[name] * factors.reshape(shape) for name, shape in shapes.items()}
    terms, _ = task.loss(tree(arrays | changed), {}, {}, batch)
    return weighted_sum(task, terms, task.counts(batch))

  method = Remove("width", 0.5, "taylor")
  (score,) = method._scores(task, boxes, method._groups(boxes), [batch]).values()
  np.testing.assert_allclose(score[0], np.abs(slope(jnp.ones(32))), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("structure", ["heads", pytest.param("mlp", marks=pytest.mark.long)])
def test_taylor_scores_are_gradients_of_factors(structure):
  """Those of what a unit gives, the mean magnitude over batches."""
  task = tiny_task("GPT")
  boxes = boxes_of(task, noisy(task))
  batches = [fake_batch(task, seed=seed) for seed in (1, 2)]
  arrays = {name: box.value for name, box in boxes.items()}
  name = {"heads": "model/stack/layers/attention/out/kernel", "mlp": "model/stack/layers/mlp/down/kernel"}[structure]
  size = boxes[name].value.shape[1]

  @jax.jit
  @jax.grad
  def slope(factors, batch):
    kernel = arrays[name] * factors.reshape(3, size, *[1] * (arrays[name].ndim - 2))
    terms, _ = task.loss(tree(arrays | {name: kernel}), {}, {}, batch)
    return weighted_sum(task, terms, task.counts(batch))

  expected = sum(np.abs(slope(jnp.ones((3, size)), batch)) for batch in batches)
  method = Remove(structure, 0.5, "taylor")
  scores = method._scores(task, boxes, method._groups(boxes), batches)
  (score,) = scores.values()
  np.testing.assert_allclose(score, expected, rtol=1e-3, atol=1e-6)
  _, kept = method.apply(task, boxes, batches)
  order = np.sort(np.argsort(expected, axis=1)[:, size // 2 :], axis=1)
  for layer in range(3):
    np.testing.assert_array_equal(kept[name][layer], arrays[name][layer][order[layer]])


def test_random_removal_depends_on_the_seed_alone():
  task = tiny_task("BERT")
  boxes = boxes_of(task, noisy(task))
  first, same, other = (Remove("mlp", 0.5, "random", seed).apply(task, boxes)[1] for seed in (0, 0, 1))
  jax.tree.map(np.testing.assert_array_equal, first, same)
  assert any(not np.array_equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
  "family, method, words",
  [
    ("GPT", Remove("heads", 0.9), "0.9 of 4 heads leaves none"),
    ("LSTM", Remove("heads", 0.5), "no heads that can leave"),
    ("ELMo", Remove("mlp", 0.5), "no mlp that can leave"),
    ("ALBERT", Remove("layers", 0.5), "no layers that can leave"),
    ("ModernBERT", Remove("layers", 0.5), "no layers that can leave"),
    ("GPT", Remove("mlp", 0.5, "taylor"), "need batches"),
    ("GPT", Remove("width", 0.99), "0.99 of 32 channels leaves none"),
    ("GPT", Remove("heads", 0.1), "removes none"),
    ("ALBERT", Remove("width", 0.5), "several widths, 16, 32"),
    ("Transformer", Remove("width", 0.5), "from its width"),
  ],
)
def test_what_cannot_be_removed(family, method, words):
  task = tiny_task(family)
  with pytest.raises(UserError, match=words):
    method.apply(task, boxes_of(task, init_params(task, fake_batch(task))))


@pytest.mark.parametrize(
  "family, changes, words",
  [
    ("LSTM", dict(cells=32), "layers_0/project/kernel would have to change, too"),
    ("LSTM", dict(cells=16), "layers_0/project/kernel would have to change, too"),
    ("BERT", dict(embedding=32), "would have to change, too"),
  ],
)
def test_sizes_that_depend_on_the_width_are_not_left_behind(family, changes, words):
  task = tiny_task(family, **changes)
  with pytest.raises(UserError, match=words):
    Remove("width", 0.5).apply(task, boxes_of(task, init_params(task, fake_batch(task))))


def test_a_vision_tower_is_not_cut_with_its_decoder():
  task = ImageLM(tiny_image_decoder(length=24, vision_depth=1, vision_heads=4))
  named = pytree.named_leaves(named_parameters(task, 1, 24), is_leaf=is_partitioned)
  boxes = {name: box.replace(value=jnp.ones(box.value.shape)) for name, box in named.items()}
  with pytest.raises(UserError, match="would have to change, too"):
    Remove("width", 0.5).apply(task, boxes)


def test_an_encoder_alone_of_t5_becomes_narrower():
  task = tiny_task("T5", decoder_depth=0)
  boxes = boxes_of(task, init_params(task, fake_batch(task)))
  assert Remove("width", 0.5).apply(task, boxes)[0]["width"] == 16


def test_settings_are_checked():
  for arguments in (("channels", 0.5), ("heads", 1.0), ("heads", -0.1), ("heads", float("nan")), ("mlp", 0.5, "wanda")):
    with pytest.raises(ValueError):
      Remove(*arguments)


def test_a_quantized_model_is_refused():
  task = tiny_task("GPT")
  boxes = boxes_of(task, init_params(task, fake_batch(task)))
  quantized = Quantize().apply(task, boxes)
  with pytest.raises(UserError, match="is quantized"):
    Remove("heads", 0.5).apply(task, {name: box.replace(value=quantized[name]) for name, box in boxes.items()})


def test_a_smaller_copy_of_a_folder_opens(tmp_path):
  """With its own config, and it can be made smaller once more, and quantized."""
  task = tiny_task("Llama", kv_heads=2)
  huggingface.save(tmp_path / "model", task.model, init_params(task, fake_batch(task)))
  saved = storage.open(tmp_path / "model")
  report = compress(saved, tmp_path / "small", [], removals=[Remove("heads", 0.5), Remove("mlp", 0.25)])
  small = storage.open(tmp_path / "small")
  config = small.task.model.config
  assert (config.heads, config.kv_heads, config.mlp, config.depth) == (2, 1, 48, 3)
  assert report.parameters < report.parameters_before and not report.errors
  assert [method["structure"] for method in small.config["compression"]["methods"]] == ["heads", "mlp"]
  compress(small, tmp_path / "smaller", [Quantize()], removals=[Remove("layers", 0.34)])
  assert storage.open(tmp_path / "smaller").task.model.config.depth == 2
  assert main(["convert", "--input", str(tmp_path / "small"), "--output", str(tmp_path / "back")]) == 0
  after = storage.open(tmp_path / "back").parameters()
  for name, array in small.parameters().items():
    np.testing.assert_array_equal(np.asarray(after[name]), np.asarray(array), err_msg=name)


@pytest.mark.long
def test_a_run_loses_heads_by_its_own_data_and_is_trained_further(tmp_path, capsys):
  run, small, tuned = tmp_path / "run", tmp_path / "small", tmp_path / "tuned"
  train = ["train", "--config", "configs/quickstart.py:debug", "--config.steps=1", "--config.evals.every=0"]
  assert main([*train, "--workdir", str(run)]) == 0
  command = ["compress", "--workdir", str(run), "--score", "taylor", "--tokens", "1024", "--measure", ""]
  assert main([*command, "--output", str(small), "--remove", "heads=0.5", "--remove", "layers=0.5"]) == 0
  assert "before" in capsys.readouterr().out
  assert main(["generate", "--workdir", str(small), "--prompt", "The", "--max_new_tokens", "2"]) == 0
  assert main(["evaluate", "--workdir", str(small)]) == 0
  shape = [f"--config.model.{key}={value}" for key, value in dict(heads=2, kv_heads=1, depth=1).items()]
  assert main([*train, *shape, f"--config.start.path={small}", "--workdir", str(tuned)]) == 0
  for wrong in ("heads=0.99", "heads=x", "channels=0.5", "heads"):
    assert main([*command, "--output", str(tmp_path / "no"), "--remove", wrong]) == 2
    assert not (tmp_path / "no").exists()


@pytest.mark.long
def test_sizes_that_a_config_leaves_open_are_those_of_the_whole_model(tmp_path):
  run, small = tmp_path / "run", tmp_path / "small"
  train = ["train", "--config", "configs/quickstart.py:debug", "--config.steps=1", "--config.evals.every=0"]
  assert main([*train, "--config.model.head_size=0", "--workdir", str(run)]) == 0
  command = ["compress", "--workdir", str(run), "--output", str(small), "--measure", "latency"]
  assert main([*command, "--remove", "width=0.25", "--remove", "heads=0.5"]) == 0
  assert main(["generate", "--workdir", str(small), "--prompt", "The", "--max_new_tokens", "2"]) == 0
  whole, narrow = (storage.open(path).task.model.config for path in (run, small))
  assert narrow.width == whole.width * 3 // 4 and narrow.head_size == whole.head_size == whole.width // whole.heads
