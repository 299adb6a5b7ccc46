"""`lmjax chat --web`: what the server answers and to whom, and the page in a browser."""

import contextlib
import http.client
import json
import socket
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import storage
from lmjax.__main__ import main
from lmjax.decode.logits import Sampling
from lmjax.inference import next_token
from lmjax.inference.chat import Chat
from lmjax.inference.chat_page import ChatServer
from tests.browser import BROWSER, browser
from tests.storage.test_gguf_tokenizers import special_folder
from tests.test_chat import TEMPLATE


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
  """A random model whose window is 128 tokens."""
  path = tmp_path_factory.mktemp("page") / "hf"
  special_folder(path, chat_template=TEMPLATE)
  return storage.open(path).load()


@pytest.fixture
def server(loaded):
  with serving(Chat(loaded, sampling=Sampling(0.0), max_new_tokens=4)) as server:
    yield server


@contextlib.contextmanager
def serving(chat):
  server = ChatServer(chat, 0)
  thread = threading.Thread(target=server.serve_forever)
  thread.start()
  with server:
    yield server
    server.stop.set()
    server.shutdown()
  thread.join()


def request(server, path, body=None, **headers):
  """Returns the status and the lines of an answer."""
  connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
  sent = None if body is None else json.dumps(body)
  kind = {} if body is None else {"Content-Type": "application/json"}
  connection.request("GET" if body is None else "POST", path, sent, kind | headers)
  response = connection.getresponse()
  text = response.read().decode()
  connection.close()
  return response.status, [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def test_a_message_is_answered_as_in_a_terminal(server, loaded):
  status, lines = request(server, "/message", {"text": "hello you"})
  chat = Chat(loaded, sampling=Sampling(0.0), max_new_tokens=4)
  ids, _ = chat.fit("hello you")
  answer = "".join(chat.answer(ids, "hello you"))
  assert status == 200 and "".join(line.get("part", "") for line in lines) == answer
  assert [m["content"] for m in lines[-1]["state"]["messages"]] == ["hello you", answer]
  steps = [("/system be kind", 3), ("/temperature 0.5", 3), ("/undo", 1), ("/reset", 1), ("/system", 0)]
  for text, count in steps:
    (line,) = request(server, "/command", {"text": text})[1]
    assert len(line["state"]["messages"]) == count, text
  assert line["state"]["temperature"] == 0.5 and request(server, "/state")[1] == [line["state"]]


def test_a_saved_conversation_is_loaded(server, tmp_path):
  """The file is that of `/save`; where it is none, the conversation stays."""
  request(server, "/message", {"text": "hello you"})
  server.chat.save(tmp_path / "chat.json")
  before, text = list(server.chat.messages), (tmp_path / "chat.json").read_text()
  request(server, "/command", {"text": "/reset"})
  (line,) = request(server, "/load", {"name": "chat.json", "text": text})[1]
  assert server.chat.messages == before and [m["content"] for m in line["state"]["messages"]][0] == "hello you"
  assert "no answer" in request(server, "/look", {})[1][0]["error"]
  for text in ("{", "[]", "{}", '{"messages": [{"role": "user"}]}'):
    (line,) = request(server, "/load", {"name": "chat.json", "text": text})[1]
    assert line["error"].startswith("chat.json ") and server.chat.messages == before


def test_what_the_model_saw_at_a_token(server, loaded):
  """Equal to a full forward pass over what precedes the token."""
  request(server, "/message", {"text": "hello you"})
  ids, prompt = server.chat.ids, server.chat.prompt
  at = prompt + 1
  (view,) = request(server, "/look", {"at": at, "layer": 1, "head": 0})[1]
  out = loaded.task.forward(loaded.params, {"inputs": jnp.array([ids[:at]])}, taps=("attention",))
  wanted = jax.nn.softmax(out.logits[0, -1])
  assert view["prompt"] == prompt and len(view["tokens"]) == len(ids) and view["at"] == at
  np.testing.assert_allclose(view["attention"], out.taps["attention"][1, 0, 0, -1], atol=1e-5)
  np.testing.assert_allclose([row["p"] for row in view["next"]], np.sort(wanted)[::-1][:10], atol=1e-5)
  assert [row["drawn"] for row in view["next"]] == [True] + [False] * 9, "greedy"
  (mean,) = request(server, "/look", {"at": at, "layer": 1})[1]
  np.testing.assert_allclose(mean["attention"], out.taps["attention"][1, 0].mean(0)[-1], atol=1e-5)
  for asked, message in (({"at": 0}, "position 0"), ({"layer": 9}, "layers"), ({"layer": -1}, "whole number")):
    assert message in request(server, "/look", asked)[1][0]["error"]
  request(server, "/command", {"text": "/undo"})
  assert "no answer" in request(server, "/look", {})[1][0]["error"]


def test_attention_that_would_not_fit_is_left_out(server, monkeypatch):
  monkeypatch.setattr(next_token, "MOST_BYTES", 10)
  request(server, "/message", {"text": "hello"})
  (view,) = request(server, "/look", {})[1]
  assert "would need" in view["note"] and "attention" not in view and len(view["next"]) >= 10


def test_only_a_page_of_this_server_is_answered(server):
  """Not a page of another site, nor another name for this address, nor a form that a browser sends without asking."""
  here = f"127.0.0.1:{server.server_port}"
  assert request(server, "/state", Host="evil.example")[0] == 403
  assert request(server, "/stop", {}, Origin="http://evil.example")[0] == 403
  assert request(server, "/stop", {}, Origin=f"http://{here}1")[0] == 403
  assert request(server, "/stop", {}, **{"Content-Type": "text/plain"})[0] == 403
  assert request(server, "/stop", {}, Origin=f"http://{here}") == (200, [{}])
  assert request(server, "/state", Host=f"localhost:{server.server_port}")[0] == 200
  assert request(server, "/etc/passwd")[0] == 404 and request(server, "/nothing", {})[0] == 404
  assert server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize(("path", "body", "message"), [
  ("/message", {"text": " "}, "empty"), ("/message", {"text": 3}, "a string"), ("/message", [1], "request"),
  ("/message", {"text": "word " * 300}, "the model reads"), ("/command", {"text": "/save x"}, "no command /save"),
  ("/command", {"text": "/temperature hot"}, "temperature"), ("/command", {}, "text is missing"),
])  # fmt: skip
def test_what_cannot_be_done_is_one_line(server, path, body, message):
  status, (line,) = request(server, path, body)
  assert status == 200 and message in line["error"] and "\n" not in line["error"]
  assert request(server, "/state")[1][0]["messages"] == []


def test_one_answer_at_a_time_which_can_be_stopped(loaded, monkeypatch):
  with serving(Chat(loaded, sampling=Sampling(0.0), max_new_tokens=64)) as server:
    first, resume = threading.Event(), threading.Event()
    answer = server.chat.answer

    def slow(ids, text):
      for part in answer(ids, text):
        yield part
        first.set()
        assert resume.wait(60)

    monkeypatch.setattr(server.chat, "answer", slow)
    lines = []
    thread = threading.Thread(target=lambda: lines.extend(request(server, "/message", {"text": "hello"})[1]))
    thread.start()
    assert first.wait(60)
    assert "busy" in request(server, "/message", {"text": "again"})[1][0]["error"]
    assert "busy" in request(server, "/command", {"text": "/reset"})[1][0]["error"]
    request(server, "/stop", {})
    resume.set()
    thread.join()
    assert lines[-1]["stopped"] and sum("part" in line for line in lines) <= 3


def test_a_port_that_is_taken_is_one_line(tmp_path, capsys):
  special_folder(tmp_path / "hf", chat_template=TEMPLATE)
  with socket.socket() as taken:
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    port = str(taken.getsockname()[1])
    assert main(["chat", "--workdir", str(tmp_path / "hf"), "--web", "--port", port]) == 2
  errors = capsys.readouterr().err
  assert errors.count("\n") == 1 and port in errors and "--port" in errors
  assert (
    main(["chat", "--workdir", "x", "--port", "80"]) == 2
    and main(["chat", "--workdir", "x", "--web", "--message", "y"]) == 2
  )


@pytest.mark.skipif(not BROWSER, reason="needs Chromium")
def test_a_browser_talks_without_an_error_or_another_request(server, tmp_path):
  here = f"http://127.0.0.1:{server.server_port}/"
  with browser(tmp_path) as page:
    page.call("Page.navigate", url=here)
    page.wait("document.querySelector('#model') && document.querySelector('#model').textContent !== ''")
    page.evaluate("document.querySelector('#text').value = 'hello <b>you</b>'; document.querySelector('#send').click()")
    page.wait("document.querySelectorAll('#next tr').length >= 10")
    messages = page.evaluate("[...document.querySelectorAll('.message')].map(m => m.textContent)")
    assert messages == ["hello <b>you</b>", server.chat.messages[1].content]
    assert page.evaluate("getComputedStyle(document.querySelector('#picture')).display") == "none", "it reads no images"
    page.wait("!document.querySelector('#send').disabled")
    choose = "const s = document.querySelector('#layer'); s.value = '1'; s.dispatchEvent(new Event('change'));"
    before = page.evaluate("document.querySelector('#tokens').innerHTML")
    page.evaluate(choose)
    page.wait(f"document.querySelector('#tokens').innerHTML !== {json.dumps(before)}")
    page.wait("!document.querySelector('#reset').disabled")
    page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.evaluate("document.querySelector('#save').click()")
    saved = tmp_path / "chat.json"
    page.wait("!document.querySelector('#save').disabled")
    for _ in range(900):
      if saved.exists():
        break
      time.sleep(0.1)
    assert [m["content"] for m in json.loads(saved.read_text())["messages"]] == messages
    page.evaluate("document.querySelector('#reset').click()")
    page.wait("document.querySelectorAll('.message').length === 0")
    field = page.call("DOM.querySelector", nodeId=page.call("DOM.getDocument")["root"]["nodeId"], selector="#load")
    page.call("DOM.setFileInputFiles", files=[str(saved)], nodeId=field["nodeId"])
    page.wait("document.querySelectorAll('.message').length === 2")
    page.wait("!document.querySelector('#reset').disabled")
    page.evaluate("document.querySelector('#reset').click()")
    page.wait("document.querySelectorAll('.message').length === 0")
    assert not page.errors() and all(url.startswith((here, "data:")) for url in page.requests())
    assert f"{here}message" in page.requests()
    with contextlib.suppress(AssertionError):  # what the page may not do is noticed
      page.evaluate("fetch('http://127.0.0.2:9/x')")
    page.wait("true")
    assert page.errors()
