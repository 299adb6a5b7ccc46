"""Properties of the decoder family."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.layers.positions import Rotary
from lmjax.models.decoder import PRESETS, Config, Decoder
from lmjax.parallel.sharding import count_parameters
from lmjax.tasks.log_probs import token_log_probs
from lmjax.tasks.losses import cross_entropy
from lmjax.testing import init_params, tiny_decoder

COUNTS = {
  "gpt": 116_534_784,
  "gpt2-124m": 124_439_808,
  "gpt2-355m": 354_823_168,
  "gpt2-774m": 774_030_080,
  "gpt2-1558m": 1_557_611_200,
  "gpt3-125m": 125_226_240,
  "gpt3-350m": 355_871_744,
  "gpt3-760m": 760_300_032,
  "gpt3-1.3b": 1_315_723_264,
  "gpt3-2.7b": 2_651_553_280,
  "gpt3-6.7b": 6_658_404_352,
  "gpt3-13b": 12_853_386_240,
  "gpt3-175b": 174_604_259_328,
  "llama2-7b": 6_738_415_616,
  "llama3-8b": 8_030_261_248,
}

LLAMA = dict(
  rotary=Rotary(), norm="rms", activation="silu", gated_mlp=True, kv_heads=2, bias=False, tie_embeddings=False
)
SHAPES = {
  "gpt": dict(post_norm=True),
  "gpt2": {},
  "llama": LLAMA,
  "mistral": LLAMA | dict(window=5),
  # As GPT-NeoX and Phi, with Granite's multipliers and Qwen3's norms.
  "parallel": dict(
    parallel=True, rotary=Rotary(fraction=0.5), residual_scale=0.7, logits_scaling=3.0, embed_scale=6.0,
    score_scale=0.3, unembed_bias=True,
  ),
  "phi": LLAMA | dict(parallel=True, shared_norm=True, qk_norm=True, unembed_bias=True, output_norms=True),
  "opt": dict(position_offset=2, activation="relu"),
  # As Gemma 2 and 3: layers that differ are not scanned.
  "gemma": LLAMA | dict(
    norm="rms_offset", output_norms=True, qk_norm=True, embed_scale=5.7, score_scale=0.2, score_cap=2.0, logits_cap=3.0,
    window=5, window_layers=(0,), window_rotary=Rotary(base=50.0),
  ),
}  # fmt: skip


def test_heads_alone_is_a_valid_shape():
  for heads in (1, 4, 12, 16):
    assert Config(vocabulary=8, length=4, width=64, heads=heads).kv_heads == heads


def made(**changes):
  """Returns a tiny model and parameters that are not at their special initial values."""
  model = tiny_decoder(**changes)
  params = init_params(model, {"inputs": jnp.zeros((1, 8), jnp.int32)})["params"]
  rng = np.random.default_rng(0)
  return model, jax.tree.map(lambda p: p + 0.05 * rng.standard_normal(p.shape).astype(np.float32), params)


def with_config(model, **changes):
  return Decoder(dataclasses.replace(model.config, **changes))


def vectors(model, params, ids, rngs=None, **batch):
  """Returns the final vectors [B, L, D] of ids, with further keys of their batch."""
  return model.apply({"params": params}, {"inputs": ids} | batch, rngs=rngs).tokens


def tokens(batch=2, length=12, seed=1):
  return jnp.asarray(np.random.default_rng(seed).integers(0, 50, (batch, length)))


@pytest.mark.parametrize("name", PRESETS)
def test_parameter_counts(name):
  preset = dict(PRESETS[name])
  if preset.get("rotary"):
    preset["rotary"] = Rotary(**preset["rotary"])
  model = Decoder(Config(**preset))
  shapes = jax.eval_shape(
    lambda rng: model.init(rng, {"inputs": jnp.zeros((1, 8), jnp.int32)})["params"], jax.random.key(0)
  )
  assert count_parameters(shapes) == COUNTS[name]
  table = shapes["embed"]["table"].value
  assert table.shape[0] % 128 == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_a_token_depends_on_no_later_one(shape):
  model, params = made(**SHAPES[shape])
  x = jax.random.normal(jax.random.key(2), (1, 10, 32))
  table = params["embed"]["table"].at[:10].set(x[0])
  params = params | {"embed": {"table": table}}

  def output(table, at):
    return vectors(model, params | {"embed": {"table": table}}, jnp.arange(10)[None])[0, at].sum()

  for at in (0, 4, 9):
    gradient = jnp.abs(jax.grad(output)(table, at)[:10]).sum(-1)
    assert (gradient[at + 1 :] == 0).all()
    reach = gradient[: at + 1]
    assert (reach > 0).all() if "window" not in SHAPES[shape] else reach[-1] > 0


def test_a_window_reaches_as_far_as_layers_let_it():
  model, params = made(**LLAMA, window=3, depth=1)
  ids = tokens(1)
  hidden, other = vectors(model, params, ids), vectors(model, params, ids.at[0, 4].add(1))
  changed = jnp.abs(hidden - other).max(-1)[0] > 0
  assert changed.tolist() == [i in (4, 5, 6) for i in range(12)]


@pytest.mark.parametrize("shape", SHAPES)
def test_packed_documents_never_meet(shape):
  model, params = made(**SHAPES[shape])
  first, second = tokens(1, 7), tokens(1, 5, seed=2)
  packed = jnp.concatenate([first, second], 1)
  positions = jnp.concatenate([jnp.arange(7), jnp.arange(5)])[None]
  segments = jnp.array([[1] * 7 + [2] * 5])
  together = vectors(model, params, packed, positions=positions, segments=segments)
  for alone, part in ((first, together[:, :7]), (second, together[:, 7:])):
    np.testing.assert_allclose(vectors(model, params, alone), part, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_scan_is_loop_is_remat(shape):
  model, params = made(**SHAPES[shape])
  ids = tokens()

  def loss(model, params):
    return (vectors(model, params, ids) ** 2).mean()

  value, grads = jax.value_and_grad(loss, argnums=1)(model, params)
  for changes in (dict(scan=False), dict(remat="full"), dict(remat="dots"), dict(scan=False, remat="full")):
    other, other_grads = jax.value_and_grad(loss, argnums=1)(with_config(model, **changes), params)
    np.testing.assert_allclose(value, other, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads, other_grads)


def test_dropout_is_the_same_under_scan_loop_and_remat():
  model, params = made(dropout=0.3)
  ids = tokens()

  def run(model):
    return vectors(model, params, ids, rngs={"dropout": jax.random.key(7)})

  value = run(model)
  assert jnp.abs(value - vectors(model, params, ids)).max() > 0.1
  for changes in (dict(scan=False), dict(remat="full")):
    np.testing.assert_allclose(value, run(with_config(model, **changes)), atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_cached_decoding_is_the_full_forward(shape):
  model, params = made(**SHAPES[shape])
  ids = tokens(3, 12)
  hidden = vectors(model, params, ids)
  for tree in (params, model.decode_layout(params)):
    prompt = {"inputs": ids[:, :5], "segments": jnp.ones((3, 5), jnp.int32)}
    part, cache = model.apply({"params": tree}, prompt, 16, method="prefill")
    parts = [part]
    for start, end in ((5, 6), (6, 9), (9, 12)):
      valid = jnp.ones((3, end - start), bool)
      part, cache = model.apply({"params": tree}, cache, ids[:, start:end], valid, method="extend")
      parts.append(part)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), hidden, atol=1e-5)


@pytest.mark.parametrize("shape", ["parallel", "phi", "gemma"])
def test_scores_of_the_table_are_the_models(shape):
  """What losses compute from `unembedding`, with its bias and its cap, are the logits that decoding uses."""
  model, params = made(**SHAPES[shape])
  x, targets = vectors(model, params, tokens()), tokens(seed=3)
  logits = model.apply({"params": params}, x, method="logits")
  expected = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
  table = model.unembedding(params)
  np.testing.assert_allclose(token_log_probs(x, table, targets, 50), expected, atol=1e-5)
  loss, _ = cross_entropy(x, table, targets, jnp.ones(targets.shape), 50)
  np.testing.assert_allclose(loss, -expected.sum(), rtol=1e-5)
  cap = model.config.logits_cap
  assert cap is None or jnp.abs(logits).max() < cap


def test_every_new_option_changes_the_output():
  ids = tokens()
  for changes in (
    dict(parallel=True), dict(residual_scale=0.5), dict(logits_scaling=2.0),
    dict(embed_scale=2.0), dict(score_scale=3.0), dict(score_cap=0.01), dict(position_offset=2), dict(logits_cap=0.5),
  ):  # fmt: skip
    model, params = made(depth=1, **changes)
    plain = with_config(model, **{name: getattr(tiny_decoder().config, name) for name in changes})
    if "position_offset" in changes:
      params, other = params, params | {"positions": {"table": params["positions"]["table"][:-2]}}
    else:
      other = params
    one, two = (
      m.apply({"params": p}, vectors(m, p, ids), method="logits") for m, p in ((model, params), (plain, other))
    )
    assert jnp.abs(one - two).max() > 1e-4, changes


@pytest.mark.parametrize("shape", SHAPES)
def test_padding_anywhere_changes_nothing(shape):
  model, params = made(**SHAPES[shape])
  ids = tokens(1, 6)
  hidden = vectors(model, params, ids)
  segments = jnp.array([[0, 0, 1, 1, 0, 1, 1, 1, 0, 1]])
  valid = segments > 0
  padded = jnp.zeros((1, 10), jnp.int32).at[0, jnp.flatnonzero(valid[0])].set(ids[0])
  extended, _ = model.apply({"params": params}, model.init_cache(1, 12), padded, valid, method="extend")
  prefilled, _ = model.apply({"params": params}, {"inputs": padded, "segments": segments}, 12, method="prefill")
  for x_BxLxD in (extended, prefilled):
    np.testing.assert_allclose(x_BxLxD[:, valid[0]], hidden, atol=1e-5)


def test_bfloat16_computes_in_half_and_scores_in_float32():
  model, params = made(dtype="bfloat16")
  hidden = vectors(model, params, tokens())
  assert hidden.dtype == jnp.bfloat16
  logits = model.apply({"params": params}, hidden, method="logits")
  assert logits.dtype == jnp.float32 and logits.shape[-1] == 50
  exact = vectors(with_config(model, dtype="float32"), params, tokens())
  assert jnp.abs(hidden - exact).max() < 0.15  # 3 layers of 2^-8 relative error on values of size 3


def test_taps():
  model, params = made()
  ids = tokens()
  hidden = model.apply({"params": params}, {"inputs": ids}, taps=("hidden", "attention"))
  taps = hidden.taps
  assert taps["hidden"].shape == (3, 2, 12, 32) and taps["attention"].shape == (3, 2, 4, 12, 12)
  np.testing.assert_allclose(taps["attention"].sum(-1), 1, atol=1e-5)
  assert (jnp.triu(taps["attention"], 1) == 0).all()
  np.testing.assert_allclose(hidden.tokens, vectors(model, params, ids), atol=1e-5)


@pytest.mark.parametrize(
  "changes, words",
  [
    (dict(kv_heads=3), "multiple of kv_heads"),
    (dict(norm="batch"), "norm is one of"),
    (dict(dropout=1.0), "dropout"),
    (dict(qk_norm=True), "qk_norm needs"),
    (dict(rotary=Rotary(fraction=0.4)), "even"),
  ],
)
def test_impossible_shapes_are_refused(changes, words):
  with pytest.raises(ValueError, match=words):
    tiny_decoder(**changes)
