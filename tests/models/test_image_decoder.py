"""Properties of decoders that read images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.decode.logits import Sampling
from lmjax.decode.sample import Sampler
from lmjax.models.decoder import Decoder
from lmjax.models.image_decoder import Config
from lmjax.tasks.image_lm import ImageLM
from lmjax.testing import init_params
from tests.families import tiny_image_decoder

LENGTH, TEXT = 12, 5


def made(**changes):
  """A model, its parameters, and a row of an image and a text."""
  model = tiny_image_decoder(length=24, **changes)
  patches = model.config.patches
  task = ImageLM(model)
  batch = {key: jnp.zeros(leaf.shape, leaf.dtype) for key, leaf in task.spec(1, LENGTH).items()}
  params = init_params(task, batch)["model"]
  ids = jnp.asarray([[0] * patches + [5, 9, 3, 7, 2]])
  mask = (jnp.arange(ids.shape[1]) < patches)[None].astype(jnp.int32)
  embeddings = jax.random.normal(jax.random.key(1), (1, patches, model.config.patch_values))
  return model, params, {"inputs": ids, "embedded_mask": mask, "embeddings": embeddings}


def outputs(model, params, batch):
  return model.apply({"params": params}, batch).tokens


@pytest.mark.parametrize("changes", [{}, {"vision_depth": 2}])
def test_text_sees_all_of_the_image_and_nothing_later(changes):
  model, params, batch = made(**changes)
  patches = model.config.patches
  slopes = jax.jacobian(lambda e: outputs(model, params, batch | {"embeddings": e})[0, patches:, 0])(
    batch["embeddings"]
  )
  assert (abs(slopes).sum(axis=(1, 3)) > 0).all(), "every token of the text reads every patch"
  other = batch["inputs"].at[0, -1].set(11)
  np.testing.assert_array_equal(
    outputs(model, params, batch)[:, :-1], outputs(model, params, batch | {"inputs": other})[:, :-1]
  )


@pytest.mark.parametrize("prefix", [True, False])
def test_the_vectors_of_an_image_see_each_other_if_it_is_a_prefix(prefix):
  model, params, batch = made(image_prefix=prefix)
  last = batch["embeddings"].at[0, -1].add(1.0)
  first = lambda batch: outputs(model, params, batch)[0, 0]  # noqa: E731
  assert prefix == bool((first(batch) != first(batch | {"embeddings": last})).any())


def test_without_an_image_it_is_a_decoder():
  model, params, batch = made()
  plain = Decoder(model.config)
  inputs = {"inputs": batch["inputs"]}
  own = {key: value for key, value in params.items() if key != "vision"}
  np.testing.assert_array_equal(outputs(model, params, inputs), outputs(plain, own, inputs))


@pytest.mark.parametrize("changes", [{}, {"vision_depth": 1}])
def test_answers_with_a_cache_are_those_of_the_full_pass_whatever_the_padding(changes):
  model, params, batch = made(**changes)
  sampler, new = Sampler(model, 24, Sampling(temperature=0.0)), 4
  prompt = batch["inputs"][:, :-2]
  tokens = jnp.concatenate([jnp.full((1, 3), 8), prompt], axis=1)  # padded on the left
  valid = jnp.ones(tokens.shape, bool).at[0, :3].set(False)
  inputs = {"inputs": tokens, "segments": valid.astype(jnp.int32), "embeddings": batch["embeddings"]}
  read, _ = model.apply({"params": params}, inputs, 24, method="prefill")
  whole = outputs(model, params, batch)[:, : prompt.shape[1]]
  np.testing.assert_allclose(read[:, 3:], whole, atol=1e-5)  # of all places, those of the image too
  prepared = sampler.prepare(params)
  drawn = sampler.continuations(prepared, tokens, valid, new, np.zeros(1, np.uint32), new, batch["embeddings"])
  ids, full = np.concatenate(list(drawn), axis=1)[0], batch["inputs"][:, :-2]
  for token in ids:
    mask = jnp.pad(batch["embedded_mask"], ((0, 0), (0, full.shape[1])))[:, : full.shape[1]]
    hidden = outputs(model, params, batch | {"inputs": full, "embedded_mask": mask})
    logits = model.apply({"params": params}, hidden[:, -1], method="logits")
    assert int(jnp.argmax(logits)) == token
    full = jnp.concatenate([full, jnp.asarray([[token]])], axis=1)


@pytest.mark.parametrize(
  "changes, words",
  [
    (dict(image=10, patch=4), "multiple of patch"), (dict(patch=0), "multiple of patch"),
    (dict(vision_depth=-1), "at least"), (dict(vision_width=10, vision_heads=4), "multiple of vision_heads"),
    (dict(image=80, patch=4), "leave no space"),
  ],
)  # fmt: skip
def test_shapes_that_cannot_be_are_refused(changes, words):
  with pytest.raises(ValueError, match=words):
    Config(vocabulary=8, length=24, **changes)
