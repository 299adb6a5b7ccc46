"""LLaVA-1.5 in transformers: the same scores of text with an image, of a folder as it is published and back again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from lmjax.data.clip_images import pixels_of
from lmjax.data.images import cut
from lmjax.storage import huggingface
from lmjax.storage.huggingface.folder import HuggingFaceFolder, task_of
from lmjax.utils.fields import Fields

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]
IMAGE = 45  # the token in the places of an image


def make(folder, seed=0, **changes):
  """Writes a tiny random model, and returns it in transformers."""
  torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
  torch.manual_seed(seed)
  vision = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=3, image_size=8,
                patch_size=4, projection_dim=8)  # fmt: skip
  text = dict(vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
              num_key_value_heads=2, max_position_embeddings=40, head_dim=8)  # fmt: skip
  parts = dict(vision_config=transformers.CLIPVisionConfig(**vision), text_config=transformers.LlamaConfig(**text))
  config = transformers.LlavaConfig(
    **parts, image_token_index=IMAGE,
    image_seq_length=4 + (changes.get("vision_feature_select_strategy") == "full"), **changes,
  )  # fmt: skip
  model = transformers.LlavaForConditionalGeneration(config).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter += 0.1 * torch.randn_like(parameter)
  model.save_pretrained(folder)
  return model


@pytest.mark.parametrize("changes", [
  {}, {"vision_feature_select_strategy": "full", "vision_feature_layer": -1, "multimodal_projector_bias": False},
  {"vision_feature_layer": 1, "projector_hidden_act": "relu"},
], ids=["1.5", "full", "layer 1"])  # fmt: skip
def test_scores_are_those_of_transformers_and_survive_a_copy(tmp_path, changes):
  torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
  theirs = make(tmp_path / "hf", **changes)
  loaded = huggingface.load(tmp_path / "hf")
  places = loaded.model.config.vectors
  ids = np.array([[1, 5, 9, *[IMAGE] * places, 13, 7, 2, 30]])
  pixels = np.random.default_rng(0).normal(size=(8, 8, 3)).astype(np.float32)
  with torch.no_grad():
    image = torch.tensor(pixels.transpose(2, 0, 1))[None]
    wanted = theirs(input_ids=torch.tensor(ids), pixel_values=image).logits.numpy()
    without = theirs(input_ids=torch.tensor(ids[:, :3])).logits.numpy()
  task, params = task_of(loaded), loaded.arrays()
  batch = {"inputs": jnp.asarray(ids), "embeddings": jnp.asarray(cut(pixels, 4))[None]}
  logits = jax.jit(lambda batch: task.forward(params, batch).logits)
  np.testing.assert_allclose(logits(batch), wanted, atol=1e-4)
  np.testing.assert_allclose(logits({"inputs": jnp.asarray(ids[:, :3])}), without, atol=1e-4)
  assert abs(logits(batch | {"embeddings": batch["embeddings"] + 1})[0, -1] - wanted[0, -1]).max() > 1e-2
  HuggingFaceFolder.save(tmp_path / "copy", HuggingFaceFolder(tmp_path / "hf"))
  back, info = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "copy", output_loading_info=True)
  assert not info["missing_keys"] and not info["unexpected_keys"]
  with torch.no_grad():
    same = back.eval()(input_ids=torch.tensor(ids), pixel_values=image).logits.numpy()
  np.testing.assert_array_equal(same, wanted)


@pytest.mark.parametrize(("size", "changes"), [
  ((40, 31), {}), ((9, 30), {}), ((16, 16), {"do_pad": True}),
  ((23, 50), {"do_pad": True, "image_mean": [0.5, 0.4, 0.3]}),
  ((12, 12), {"size": {"height": 8, "width": 8}, "do_center_crop": False}), ((30, 20), {"size": 6, "resample": 2}),
])  # fmt: skip
def test_pixels_are_those_of_transformers(size, changes):
  module = pytest.importorskip("transformers.models.llava.image_processing_pil_llava")
  settings = {"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}} | changes
  image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8))
  wanted = module.LlavaImageProcessorPil(**settings)(image, return_tensors="np")["pixel_values"][0]
  own = pixels_of(image, 8, Fields(settings, "preprocessor_config.json"))
  np.testing.assert_allclose(own, wanted.transpose(1, 2, 0), atol=1e-5)
