"""Conversations about an image: with `/image` in a terminal, and on the page."""

import base64
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from lmjax import storage
from lmjax.decode.logits import Sampling
from lmjax.inference.chat import Chat
from lmjax.inference.chat_commands import run_command
from lmjax.tasks.image_lm import ImageLM
from lmjax.testing import init_params
from lmjax.utils.errors import UserError
from tests.browser import BROWSER, browser
from tests.families import tiny_image_decoder
from tests.storage.test_gguf_tokenizers import special_folder
from tests.test_chat import TEMPLATE
from tests.test_chat_page import request, serving


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
  """A random model that reads images of 8 x 8 pixels, 4 of its 128 tokens."""
  path = tmp_path_factory.mktemp("images") / "hf"
  special_folder(path, chat_template=TEMPLATE)
  text = storage.open(path).load()
  task = ImageLM(tiny_image_decoder(vocabulary=text.task.model.config.vocabulary, length=128))
  batch = {key: jnp.zeros(leaf.shape, leaf.dtype) for key, leaf in task.spec(1, 16).items()}
  return dataclasses.replace(text, task=task, params=init_params(task, batch))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
  """Two files, one light and one dark."""
  files = [tmp_path_factory.mktemp("pictures") / f"{name}.png" for name in ("light", "dark")]
  for file, colour in zip(files, ((240, 200, 160), (9, 30, 60)), strict=True):
    Image.new("RGB", (20, 10), colour).save(file)
  return files


def test_the_model_reads_the_image_before_the_messages(loaded, pictures):
  """The ids that a full forward pass with the image chooses; another image changes the probabilities."""
  chat = Chat(loaded, sampling=Sampling(0.0), max_new_tokens=6)
  plain, _ = chat.fit("what is it")
  run_command(chat, f"/image {pictures[0]}")
  ids, _ = chat.fit("what is it")
  assert ids == [0] * 4 + plain
  list(chat.answer(ids, "what is it"))
  image = chat.image[None]
  own, mask = list(ids), jnp.arange(64)[None] < 4
  batch = {"embedded_mask": mask.astype(jnp.int32), "segments": jnp.ones((1, 64), jnp.int32)}

  @jax.jit
  def best(inputs, image, at):
    return loaded.task.forward(loaded.params, batch | {"inputs": inputs, "embeddings": image}).logits[0, at]

  for _ in chat.ids[len(ids) :]:
    scores = best(jnp.zeros((1, 64), jnp.int32).at[0, : len(own)].set(jnp.array(own)), image, len(own) - 1)
    own.append(int(scores.argmax()))
  assert chat.ids == own
  chat.show(pictures[1])
  assert not np.array_equal(chat.image, image[0])
  padded = jnp.zeros((1, 64), jnp.int32).at[0, : len(ids)].set(jnp.array(ids))
  assert abs(best(padded, image, len(ids) - 1) - best(padded, chat.image[None], len(ids) - 1)).max() > 1e-3
  run_command(chat, "/image")
  assert chat.image is None
  chat.show(pictures[0])
  run_command(chat, "/reset")
  assert chat.image is None and not chat.messages


def test_other_files_and_models_without_images_are_refused(loaded, pictures, tmp_path):
  chat = Chat(loaded, sampling=Sampling(0.0), max_new_tokens=4)
  (tmp_path / "text.png").write_text("not an image")
  for file, message in ((tmp_path / "text.png", "not a PNG or JPEG"), (tmp_path / "nowhere.png", "nowhere.png")):
    with pytest.raises(UserError, match=message):
      run_command(chat, f"/image {file}")
  special_folder(tmp_path / "hf", chat_template=TEMPLATE)
  text = Chat(storage.open(tmp_path / "hf").load(), max_new_tokens=4)
  for file in (pictures[0], "nowhere.png"):
    with pytest.raises(UserError, match="reads text alone"):
      run_command(text, f"/image {file}")


def test_an_image_that_is_sent_to_the_page(loaded, pictures):
  chat = Chat(loaded, sampling=Sampling(0.0), max_new_tokens=4)
  with serving(chat) as server:
    data = base64.b64encode(pictures[0].read_bytes()).decode()
    (line,) = request(server, "/image", {"name": "light.png", "data": data})[1]
    assert line["state"]["image"] and line["state"]["images"]
    own = Chat(loaded)
    own.show(pictures[0])
    np.testing.assert_array_equal(chat.image, own.image)
    request(server, "/message", {"text": "what is it"})
    (view,) = request(server, "/look", {"layer": 1, "head": 0})[1]
    assert len(view["attention"]) == view["prompt"] == len(chat.ids[: chat.prompt])
    batch = {"inputs": jnp.array([chat.ids[: chat.prompt]]), "embeddings": chat.image[None]}
    batch["embedded_mask"] = (jnp.arange(chat.prompt) < 4)[None].astype(jnp.int32)
    out = loaded.task.forward(loaded.params, batch, taps=("attention",))
    np.testing.assert_allclose(view["attention"], out.taps["attention"][1, 0, 0, -1], atol=1e-5)
    np.testing.assert_allclose(view["next"][0]["p"], jax.nn.softmax(out.logits[0, -1]).max(), atol=1e-5)
    assert "base64" in request(server, "/image", {"name": "x", "data": "?"})[1][0]["error"]
    assert "not a PNG" in request(server, "/image", {"name": "x", "data": "aGVsbG8="})[1][0]["error"]
    assert not request(server, "/command", {"text": "/image"})[1][0]["state"]["image"]


@pytest.mark.skipif(not BROWSER, reason="needs Chromium")
def test_a_file_that_is_chosen_in_a_browser_is_shown(loaded, pictures, tmp_path):
  chat = Chat(loaded, sampling=Sampling(0.0), max_new_tokens=4)
  with serving(chat) as server, browser(tmp_path / "profile") as page:
    page.call("Page.navigate", url=f"http://127.0.0.1:{server.server_port}/")
    page.wait("document.querySelector('#picture') && !document.querySelector('#picture').hidden")
    root = page.call("DOM.getDocument")["root"]["nodeId"]
    field = page.call("DOM.querySelector", nodeId=root, selector="#image")["nodeId"]
    (tmp_path / "text.png").write_text("not an image")
    page.call("DOM.setFileInputFiles", nodeId=field, files=[str(tmp_path / "text.png")])
    page.wait("document.querySelector('#notice').innerText.includes('not a PNG')")
    page.wait("!document.querySelector('#send').disabled")
    page.call("DOM.setFileInputFiles", nodeId=field, files=[str(pictures[0])])
    page.wait("document.querySelector('#notice').innerText === '' && !document.querySelector('#send').disabled")
    own = Chat(loaded)
    own.show(pictures[0])
    np.testing.assert_array_equal(chat.image, own.image)
    assert not page.errors()
