"""ModernBERT and DeBERTa: what sees what, documents of one row, and ways to compute that change nothing."""

import jax
import numpy as np
import pytest

from lmjax.models import deberta, modernbert
from lmjax.parallel.sharding import count_parameters
from lmjax.tasks.encode import Encode
from lmjax.testing import init_params

SHAPE = dict(vocabulary=50, length=16, width=32, depth=2, heads=4, head_size=8, mlp=64)
LOCAL = dict(reach=2, window_layers=(0, 1))
RNG = np.random.default_rng(0)
IDS = RNG.integers(0, 50, (1, 16)).astype(np.int32)


def modern(**changes):
  return modernbert.ModernBERT(modernbert.Config(**(SHAPE | changes)))


def distances(**changes):
  return deberta.DeBERTa(deberta.Config(**(SHAPE | dict(buckets=4, max_distance=10) | changes)))


MODELS = {"modern": modern, "local": lambda **changes: modern(**(LOCAL | changes)), "deberta": distances}


def batch(ids=IDS, lengths=(16,)):
  positions = np.concatenate([np.arange(n) for n in lengths])[None].astype(np.int32)
  segments = np.repeat(np.arange(len(lengths)) + 1, lengths)[None].astype(np.int32)
  return dict(inputs=ids, positions=positions, segments=segments, token_types=np.zeros_like(ids))


def initialised(model):
  noise = iter(jax.random.split(jax.random.key(1), 1000))
  params = init_params(Encode(model), batch())["model"]
  return jax.tree.map(lambda leaf: leaf + 0.2 * jax.random.normal(next(noise), leaf.shape), params)


@pytest.mark.parametrize("name", MODELS)
def test_documents_of_a_row_do_not_see_each_other(name):
  model = MODELS[name]()
  params = initialised(model)
  packed = model.apply({"params": params}, batch(lengths=(6, 10))).tokens
  for start, end in ((0, 6), (6, 16)):
    alone = model.apply({"params": params}, batch(IDS[:, start:end], (end - start,))).tokens
    np.testing.assert_allclose(packed[:, start:end], alone, atol=1e-5)


@pytest.mark.parametrize("name, farthest", [("modern", 16), ("local", 4), ("deberta", 16)])
def test_a_token_sees_as_far_forward_as_backward(name, farthest):
  """Through two layers, each of which reaches 2 tokens, a token sees 4."""
  model = MODELS[name]()
  params = initialised(model)
  base = model.apply({"params": params}, batch()).tokens
  for place in (0, 7, 15):
    ids = IDS.copy()
    ids[0, place] = (ids[0, place] + 1) % 50
    moved = np.abs(model.apply({"params": params}, batch(ids)).tokens - base)[0].max(-1) > 0
    np.testing.assert_array_equal(moved, np.abs(np.arange(16) - place) <= farthest)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("changes", [dict(scan=False), dict(remat="full")])
def test_scan_and_remat_change_nothing(name, changes):
  results = []
  for model in (MODELS[name](), MODELS[name](**changes)):
    loss = lambda params, model=model: (model.apply({"params": params}, batch()).tokens ** 2).sum()  # noqa: E731
    results.append(jax.value_and_grad(loss)(initialised(model)))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), *results)


@pytest.mark.parametrize("name", MODELS)
def test_taps_have_a_layer_each_and_weights_sum_to_one(name):
  model = MODELS[name]()
  taps = model.apply({"params": initialised(model)}, batch(), ("hidden", "attention")).taps
  assert taps["hidden"].shape == (2, 1, 16, 32) and taps["attention"].shape == (2, 1, 4, 16, 16)
  np.testing.assert_allclose(taps["attention"].sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize(
  "module, name, count",
  [
    (modernbert, "modernbert-base", 149_014_272),
    (deberta, "deberta-v3-base", 183_831_552),
  ],
)
def test_parameter_counts(module, name, count):
  kind = {modernbert: modernbert.ModernBERT, deberta: deberta.DeBERTa}[module]
  model = kind(module.Config(**module.PRESETS[name]))
  named = jax.eval_shape(lambda: Encode(model).init(jax.random.key(0), batch()))
  assert count_parameters(named["model"]) == count


@pytest.mark.parametrize("changes", [dict(pooler=True), dict(shared_layers=True), dict(offset=2), dict(embedding=8)])
def test_what_they_do_not_have_is_refused(changes):
  for make in MODELS.values():
    with pytest.raises(ValueError, match=next(iter(changes))):
      make(**changes)
