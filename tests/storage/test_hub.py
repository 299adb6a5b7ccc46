"""Models of the Hugging Face Hub by name, read and written, against a hub on this machine."""

import json
import logging
import os
import pathlib
import sys

import pytest

from lmjax import config, notebook, storage
from lmjax.__main__ import main
from lmjax.data.tokenizers import registry
from lmjax.train import train
from lmjax.utils import files, hub
from lmjax.utils.errors import UserError
from tests.storage import fake_hub

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
NAME = "me/tiny"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """The folder of a finished run."""
  folder = tmp_path_factory.mktemp("run")
  (folder / "a.txt").write_text("the quick brown fox\n\n" * 4000)
  made = config.load(f"configs/text.py:files='{folder}/a.txt'")
  made["model"] |= {"width": 32, "depth": 1, "heads": 2, "mlp": 32}
  made["data"] |= {"length": 16, "tokenizer": {"algorithm": "bytes"}}
  made |= {"steps": 1, "batch": 2, "evals": {"every": 0}, "checkpoint": {"every": 0}}
  made |= {"log": {"every": 1, "tensorboard": False, "samples": 0}, "optim": {"warmup": 1}}
  assert train(made, folder / "run") == 0
  return folder / "run"


@pytest.fixture(scope="module")
def running(tmp_path_factory):
  """A hub, and a huggingface_hub of its own that asks it, which reads the address when it is imported."""
  known = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "huggingface_hub"}
  with fake_hub.running() as hub, pytest.MonkeyPatch.context() as patch:
    for name in known:
      patch.delitem(sys.modules, name)
    patch.setenv("HF_ENDPOINT", hub.address)
    patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("home")))
    patch.delenv("HF_HUB_OFFLINE", raising=False)
    import huggingface_hub.constants

    yield hub, huggingface_hub
    for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
      del sys.modules[name]


@pytest.fixture
def server(running, tmp_path, monkeypatch):
  """The hub with nothing in it, a token and an empty cache."""
  server, library = running
  server.repositories.clear()
  server.requests.clear()
  monkeypatch.setattr(library.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
  monkeypatch.setenv("HF_TOKEN", fake_hub.TOKEN)
  server.constants = library.constants
  hub.download.cache_clear()
  yield server
  hub.download.cache_clear()


def test_a_pushed_model_is_read_by_its_name(run, server, tmp_path, capsys, caplog, monkeypatch):
  caplog.set_level(logging.DEBUG)
  assert main(["convert", "--input", str(run), "--push", NAME]) == 0
  assert f"open it as hf:{NAME}" in capsys.readouterr().out
  assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(server.repositories[NAME])
  assert not server.private[NAME] and server.repositories.keys() == {NAME}

  assert main(["show", f"hf:{NAME}"]) == 0
  generate = ["generate", "--prompt", "the", "--max_new_tokens", "3", "--temperature", "0", "--workdir"]
  texts = []
  for name in (f"hf:{NAME}", f"hf:{NAME}@{fake_hub.COMMIT}", str(run)):
    capsys.readouterr()
    assert main([*generate, name]) == 0
    texts.append(capsys.readouterr().out)
  assert len(set(texts)) == 1
  assert notebook.load(f"hf:{NAME}").tokenizer.encode("a") == registry.load(f"hf:{NAME}").encode("a")

  # It is the start and the tokenizer of a run, which remembers the commit.
  made = json.loads((run / "config.json").read_text())
  made["data"]["tokenizer"] = {"path": f"hf:{NAME}"}
  assert train(made | {"start": {"path": f"hf:{NAME}"}}, tmp_path / "next") == 0
  record = json.loads((tmp_path / "next" / "sources.json").read_text())["start"]
  assert record["path"] == f"hf:{NAME}@{fake_hub.COMMIT}" and record["files"]["model.safetensors"] > 0

  # What was downloaded is read without the network; what was not is an error.
  monkeypatch.setattr(server.constants, "HF_HUB_OFFLINE", True)
  hub.download.cache_clear()
  asked = len(server.requests)
  assert main([*generate, f"hf:{NAME}"]) == 0 and main([*generate, "hf:me/other"]) == 2
  assert len(server.requests) == asked
  out = capsys.readouterr()
  assert "is not in the cache of the Hub, and HF_HUB_OFFLINE" in out.err
  for text in (out.out, out.err, caplog.text, *(p.read_text() for p in run.parent.rglob("*.json"))):
    assert fake_hub.TOKEN not in text


@pytest.mark.parametrize(
  ("stored", "wanted"),
  [
    (["model.safetensors", "flax_model.msgpack", "pytorch_model.bin", "1_Pooling/config.json"], [0, 3]),
    (["model.safetensors.index.json", "model-1.safetensors", "model-2.safetensors", "x.gguf"], [0, 1, 2]),
    (["flax_model.msgpack", "pytorch_model.bin", "x.hdf5"], [0]),
    (["elmo_options.json", "elmo_weights.hdf5"], [0, 1]),
    (["tokenizer/bytes.json", "checkpoints/4/state/d/x", "metrics.png"], [0, 1]),
    (["0_Transformer/model.safetensors", "0_Transformer/config.json", "a.msgpack"], [0, 1]),
  ],
)
def test_only_what_is_read_is_downloaded(stored, wanted, server):
  files = dict.fromkeys(["config.json", *stored], b"{}")
  server.repositories["me/files"] = files
  folder = pathlib.Path(hub.download("hf:me/files"))
  found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
  assert found == {"config.json", *(stored[i] for i in wanted)}
  hub.download.cache_clear()
  os.rename(server.constants.HF_HUB_CACHE, f"{server.constants.HF_HUB_CACHE}.old")
  folder = pathlib.Path(hub.download("hf:me/files", weights=False))
  assert not [path for path in folder.rglob("*") if path.suffix in (".safetensors", ".msgpack", ".hdf5")]


def test_what_can_be_pushed(run, server, tmp_path, capsys):
  pytest.importorskip("gguf")
  assert main(["convert", "--input", str(run), "--push", "hf:me/small", "--format", "gguf-f32", "--private"]) == 0
  assert [*server.repositories["me/small"]] == ["small.gguf"] and server.private["me/small"]
  assert main(["show", "hf:me/small"]) == 0 and main(["show", "hf:me/small/small.gguf"]) == 0
  server.repositories["me/small"]["other.gguf"] = b""
  hub.download.cache_clear()
  os.rename(server.constants.HF_HUB_CACHE, tmp_path / "old")
  assert main(["show", "hf:me/small"]) == 2 and "hf:owner/name/other.gguf" in capsys.readouterr().err
  assert main(["convert", "--input", str(run), "--push", NAME, "--output", str(tmp_path / "kept")]) == 0
  assert (tmp_path / "kept" / "config.json").read_bytes() == server.repositories[NAME]["config.json"]


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("hf:me/nothing", "does not exist, or is private"),
    ("hf:me/gated", "is gated: accept its terms"),
    ("hf:me/refused", "is refused: the token is not valid"),
    ("hf:me/broken", ""),
    ("hf:me/empty@v9", "has no revision 'v9'"),
    ("hf:me/empty", "has no files of a model"),
    ("hf:me/a/../b", "is not a name"),
    ("hf:", "is not a name"),
    ("hf:me/-bad-", "is not a name"),
    ("hf:me/a b", "is not a name"),
  ],
)
def test_errors_are_one_line_without_the_token(name, message, server, capsys):
  server.repositories["me/empty"] = {"README.md": b"nothing"}
  assert main(["show", name]) == 2
  error = capsys.readouterr().err
  assert error.count("\n") == 1 and name in error and message in error and fake_hub.TOKEN not in error


def test_no_network_and_no_library(monkeypatch, capsys, server):
  monkeypatch.setattr(server.constants, "ENDPOINT", "http://127.0.0.1:9")
  monkeypatch.setattr(sys.modules["huggingface_hub.hf_api"].api, "endpoint", "http://127.0.0.1:9")
  assert main(["show", "hf:me/away"]) == 2 and "could not be reached" in capsys.readouterr().err
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  hub.download.cache_clear()
  assert main(["show", "hf:me/away"]) == 2 and "pip install 'lmjax[hub]'" in capsys.readouterr().err


def test_what_cannot_be_pushed(run, server, monkeypatch, capsys):
  for name, message in (("others/x", "is refused: the token"), ("x", "give owner/name"), ("a/b/c", "give owner/name")):
    assert main(["convert", "--input", str(run), "--push", name]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and fake_hub.TOKEN not in error
  monkeypatch.delenv("HF_TOKEN")
  monkeypatch.setattr(server.constants, "HF_TOKEN_PATH", "/nowhere")
  assert main(["convert", "--input", str(run), "--push", NAME]) == 2 and "needs a token" in capsys.readouterr().err
  assert not server.repositories


def test_a_name_is_no_place_to_write(tmp_path, monkeypatch, capsys, run):
  monkeypatch.chdir(tmp_path)
  for output in ("hf:me/x", "hf:me/x.gguf"):
    assert main(["convert", "--input", str(run), "--output", output]) == 2
    assert "lmjax convert --push writes one" in capsys.readouterr().err
  made = json.loads((run / "config.json").read_text())
  with pytest.raises(UserError, match="--push"):
    train(made, "hf:me/x")
  assert not any(tmp_path.iterdir())
  (tmp_path / "hf:me").mkdir()  # a folder that is there comes first
  assert files.expand("hf:me").is_dir()
  with pytest.raises(UserError, match="is not a saved model"):
    storage.open("hf:me")
