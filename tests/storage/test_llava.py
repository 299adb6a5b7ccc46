"""LLaVA-1.5 folders: opened, asked about an image, and copied; without transformers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from lmjax import storage
from lmjax.__main__ import main
from lmjax.data.tokenizers.bpe import BPE
from lmjax.decode.logits import Sampling
from lmjax.inference.chat import Chat
from lmjax.models.llava import Config, Llava
from lmjax.parallel.sharding import count_parameters
from lmjax.state import named_parameters
from lmjax.storage import huggingface
from lmjax.tasks.image_lm import ImageLM
from lmjax.testing import init_params
from lmjax.utils.errors import UserError
from lmjax.utils.fields import Fields
from tests.families import LAYERS, LLAMA, SHAPE, tiny_image_decoder
from tests.storage.huggingface_folders import tensors_of, write_tensors
from tests.storage.test_gguf import make_tokenizer

NAME = "<image>"
TEMPLATE = """{% for m in messages %}{{ m['role'].upper() + ': ' }}{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] + ' ' }}{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""  # noqa: E501


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A random model of images of 8 x 8 pixels in 4 patches, with the files that a published folder has."""
  path = tmp_path_factory.mktemp("llava") / "hf"
  tokenizer = BPE(make_tokenizer(special=("<|endoftext|>", "<s>", NAME)))
  vision = dict(image=8, patch=4, vision_depth=3, vision_width=24, vision_heads=3, vision_mlp=40)
  token = tokenizer.fast.token_to_id(NAME)
  shape = SHAPE | LAYERS | LLAMA | dict(depth=2, kv_heads=2, length=128, vocabulary=tokenizer.size, image_token=token)
  task = ImageLM(Llava(Config(**(shape | vision))))
  batch = {key: jnp.zeros(leaf.shape, leaf.dtype) for key, leaf in task.spec(1, 16).items()}
  shapes = nn.unbox(jax.eval_shape(task.model.init, jax.random.key(0), batch)["params"])
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: (rng.normal(size=x.shape) * 0.3).astype(np.float32), {"model": shapes, "heads": {}})
  huggingface.save(path, task.model, params, tokenizer)
  sizes = {"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}}
  (path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5, 0.5, 0.5]} | sizes))
  (path / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
  Image.new("RGB", (20, 10), (240, 30, 10)).save(path.parent / "red.png")
  Image.new("RGB", (20, 10), (10, 30, 240)).save(path.parent / "blue.png")
  return path


def test_generate_continues_a_prompt_about_an_image(folder, tmp_path, capsys):
  """Of a copy too, and of a folder whose tensors have the newer names."""
  command = ["--image", str(folder.parent / "red.png"), "--prompt", "What is it?", "--temperature", "0"]
  command += ["--max_new_tokens", "6"]
  assert main(["generate", "--workdir", str(folder), *command]) == 0
  text = capsys.readouterr().out
  assert len(text) > len("What is it?\n") and text.startswith("What is it?\n")
  assert main(["convert", "--input", str(folder), "--output", str(tmp_path / "copy")]) == 0
  tensors, copied = tensors_of(folder), tensors_of(tmp_path / "copy")
  assert {name: array.tobytes() for name, array in tensors.items()} == {n: a.tobytes() for n, a in copied.items()}
  keys = [json.loads((path / "config.json").read_text()) for path in (folder, tmp_path / "copy")]
  assert keys[0] == keys[1] and (tmp_path / "copy" / "preprocessor_config.json").exists()
  newer = {}
  for name, array in tensors.items():
    name = name.replace("language_model.model.", "model.language_model.").replace("language_model.lm_head", "lm_head")
    name = name.replace("vision_tower.vision_model.", "model.vision_tower.")
    newer[name.replace("multi_modal", "model.multi_modal")] = array
  assert set(newer) & set(tensors) == set()
  write_tensors(tmp_path / "copy", newer)
  capsys.readouterr()
  assert main(["generate", "--workdir", str(tmp_path / "copy"), *command]) == 0
  assert capsys.readouterr().out == text


def test_a_chat_has_the_image_where_the_template_writes_it(folder):
  """The ids of the template's text, the image's token repeated; the pixels by preprocessor_config.json."""
  loaded = storage.open(folder).load()
  chat = Chat(loaded, sampling=Sampling(0.0), max_new_tokens=5)
  plain, _ = chat.fit(f"see {NAME}?")
  assert loaded.task.model.config.image_token not in plain, "what a user types is text"
  chat.show(folder.parent / "red.png")
  np.testing.assert_allclose(
    chat.image[0, :3], (np.array([240, 30, 10]) / 255 - 0.5) / [0.26862954, 0.26130258, 0.27577711], atol=1e-5
  )
  ids, _ = chat.fit("what is it?")
  fast, token = loaded.tokenizer.fast, loaded.task.model.config.image_token
  encode = lambda text: fast.encode(text, add_special_tokens=False).ids  # noqa: E731
  assert ids == encode("USER: ") + [token] * 4 + encode("\nwhat is it? ASSISTANT:")
  answer = "".join(chat.answer(ids, "what is it?"))
  first = list(chat.ids)
  assert answer and chat.messages[0].content == "what is it?"
  again, _ = chat.fit("and now?")
  assert again[: len(ids)] == ids and again.count(token) == 4
  batch = {"inputs": jnp.array([ids]), "embeddings": chat.image[None]}
  scores = jax.jit(lambda batch: loaded.task.forward(loaded.params, batch).logits[0, -1])
  assert int(scores(batch).argmax()) == first[len(ids)]
  chat.show(folder.parent / "blue.png")
  assert abs(scores(batch | {"embeddings": chat.image[None]}) - scores(batch)).max() > 1e-3


@pytest.mark.parametrize(("changes", "message"), [
  ({"text_config": {"model_type": "qwen2"}}, "model_type 'qwen2' is not supported"),
  ({"vision_config": {"model_type": "siglip_vision_model"}}, "vision_config.model_type"),
  ({"vision_feature_layer": [1, 2]}, "vision_feature_layer must be a whole number"),
  ({"vision_feature_layer": 25}, "not one of the 24 layers"), ({"text_config": 3}, "must be an object"),
  ({"vision_feature_select_strategy": "cls"}, "is not supported"), ({"projector_hidden_act": "x"}, "is not supported"),
])  # fmt: skip
def test_other_models_are_refused_in_a_line(changes, message):
  with pytest.raises(UserError, match=message):
    huggingface.families.FAMILIES["llava"].from_hf(Fields(changes, "config.json"))


def test_a_published_config_is_read(capsys):
  """The keys of llava-hf/llava-1.5-7b-hf, all of them known, and the published number of parameters."""
  text = dict(model_type="llama", max_position_embeddings=4096, rms_norm_eps=1e-5, vocab_size=32064)
  vision = dict(model_type="clip_vision_model", hidden_size=1024, image_size=336, intermediate_size=4096,
                num_attention_heads=16, num_hidden_layers=24, patch_size=14, projection_dim=768)  # fmt: skip
  keys = dict(image_token_index=32000, projector_hidden_act="gelu", vision_feature_layer=-2, ignore_index=-100)
  keys |= dict(vision_feature_select_strategy="default", text_config=text, vision_config=vision)
  config = huggingface.families.FAMILIES["llava"].from_hf(Fields(keys, "config.json"))
  assert (config.vectors, config.width, config.depth, config.epsilon) == (576, 4096, 32, 1e-5)
  assert count_parameters(named_parameters(ImageLM(Llava(config)), 1, 1)) == 7_063_427_072
  assert capsys.readouterr().err == ""


def test_formats_of_text_alone_refuse_it(folder, tmp_path, capsys):
  assert main(["convert", "--input", str(folder), "--output", str(tmp_path / "a.gguf")]) == 2
  assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "a.gguf").exists()


def test_an_image_decoder_without_an_equivalent_is_refused(tmp_path):
  task = ImageLM(tiny_image_decoder(length=24))
  batch = {key: jnp.zeros(leaf.shape, leaf.dtype) for key, leaf in task.spec(1, 16).items()}
  with pytest.raises(UserError, match="no Hugging Face equivalent"):
    huggingface.save(tmp_path / "hf", task.model, init_params(task, batch))
