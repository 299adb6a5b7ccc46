"""What cannot be written: one line and exit code 2 from every command, and every file is as it was before."""

import contextlib
import json
import os
import pathlib
import re
import resource
import shutil
import stat
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import pytest
from etils import epath
from jax.experimental.compilation_cache import compilation_cache

from lmjax import config, experiment, logs
from lmjax.__main__ import main
from lmjax.data.tokenizers import registry, words
from lmjax.data.tokenizers.base import Bytes
from lmjax.data.tokenizers.sentinels import Sentinels
from lmjax.inference.output import show
from lmjax.inference.table import DisplayTable
from lmjax.storage import huggingface
from lmjax.testing import init_params, tiny_decoder
from lmjax.utils import files
from lmjax.utils.errors import UserError
from tests.conftest import ROOT
from tests.storage.huggingface_folders import write_classifier

NOBODY = 65534
DEBUG = ("--config", "configs/quickstart.py:debug", "--config.steps=1")
COMMANDS = {  # of each command that writes: its arguments, and whether it creates folders and replaces nothing
  "train": (("train", *DEBUG, "--workdir", "{output}"), True),
  "convert": (("convert", "--input", "{model}", "--output", "{output}"), True),
  "convert again": (("convert", "--input", "{copied}", "--output", "{output}"), True),
  "convert gguf": (("convert", "--input", "{model}", "--output", "{output}", "--format", "gguf-f32"), True),
  "prepare": (
    ("prepare", "--files", "{text}", "--algorithm", "bytes", "--workers", "0", "--output", "{output}"), True,
  ),
  "tokenizer": (("tokenizer", "train", "--algorithm", "characters", "--files", "{text}", "--output", "{output}"), True),
  "generate": (
    ("generate", "--workdir", "{model}", "--prompt", "the", "--max_new_tokens", "1", "--output", "{output}"), False,
  ),
  "embed": (("embed", "--workdir", "{model}", "--input", "{text}", "--output", "{output}"), False),
  "evaluate": (
    ("evaluate", "--workdir", "{model}", "--config", "configs/gpt2.py:size=124m,debug", "--output", "{output}"), False,
  ),
  "suite": (("evaluate", "--workdir", "{model}", "--suite", "{suite}", "--output", "{output}"), True),
  "index": (
    ("index", "--files", "{text}", "--workdir", "{classifier}", "--tokens", "9", "--output", "{output}"), True,
  ),
  "predict": (("predict", "--workdir", "{classifier}", "--input", "{text}", "--output", "{output}"), False),
  "report": (("report", "{run}", "--output", "{output}"), False),
  "compress": (
    ("compress", "--workdir", "{model}", "--output", "{output}", "--quantize", "int8", "--measure", ""),
    True,
  ),
  "seeds": (("seeds", *DEBUG, "--seeds", "0", "--workdir", "{output}"), True),
}  # fmt: skip
TASK = {"task": "colours", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "t.jsonl"}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_choice": ["a", "b"],
        "doc_to_target": 0}  # fmt: skip
OBSTACLES = ("missing", "under a file", "in the way", "too long", "read only", "full")


@pytest.fixture(scope="module")
def given():
  """A model, a text, and a folder that any user may enter: {model, text, folder}."""
  folder = pathlib.Path(tempfile.mkdtemp())
  folder.chmod(0o755)
  (folder / "text.txt").write_text("the quick brown fox\n" * 30)
  model = tiny_decoder(vocabulary=257)
  params = init_params(model, {"inputs": jnp.zeros((1, 4), jnp.int32)})["params"]
  huggingface.save(folder / "model", model, {"model": params, "heads": {}}, Bytes())
  given = {"model": folder / "model", "copied": folder / "copied", "text": folder / "text.txt", "folder": folder}
  shutil.copytree(given["model"], given["copied"])
  (given["copied"] / "chat_template.jinja").write_text("{{ messages }}\n")
  given |= {"run": folder / "run", "suite": folder / "task.yaml", "classifier": folder / "classifier"}
  given["run"].mkdir()
  (given["run"] / "config.json").write_text("{}")
  (given["run"] / "metrics.jsonl").write_text('{"step": 1, "train_loss": 2.0}\n')
  (folder / "t.jsonl").write_text('{"q": "x"}\n')
  given["suite"].write_text(json.dumps(TASK))
  write_classifier(given["classifier"], "bert", "sequence")
  (given["classifier"] / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\nquick\n")
  yield given
  shutil.rmtree(folder)


@contextlib.contextmanager
def full_disk(size: int):
  """No file may grow beyond so many bytes, whoever writes it; jax does not cache what it compiles."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  cached = jax.config.jax_enable_compilation_cache
  jax.config.update("jax_enable_compilation_cache", False)
  compilation_cache.reset_cache()  # which asks for the option once
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    jax.config.update("jax_enable_compilation_cache", cached)
    compilation_cache.reset_cache()


@contextlib.contextmanager
def read_only(folder: pathlib.Path):
  """Nothing may be written into a folder, not by the administrator either, who is somebody else for a while."""
  folder.chmod(0o555)
  user = os.geteuid()
  if user == 0:
    os.seteuid(NOBODY)
  try:
    yield
  finally:
    os.seteuid(user)
    folder.chmod(0o755)


def tree(folder: pathlib.Path) -> dict[str, bytes | None]:
  """Returns the content of every file below a folder, None for folders."""
  return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("obstacle", OBSTACLES)
@pytest.mark.parametrize("name", COMMANDS)
def test_what_cannot_be_written_is_one_line(name, obstacle, given, capsys):
  template, is_folder = COMMANDS[name]
  suffix = ".gguf" if "gguf" in name else ""
  place = given["folder"] / f"{name}-{obstacle}"
  place.mkdir()
  output, block = place / f"output{suffix}", contextlib.nullcontext()
  if obstacle == "missing":
    if is_folder:
      return  # a folder is created with those above it
    output = place / "no" / f"output{suffix}"
  elif obstacle == "under a file":
    (place / "file").write_text("mine")
    output = place / "file" / f"output{suffix}"
  elif obstacle == "in the way":
    output.write_text("mine") if is_folder else output.mkdir()
  elif obstacle == "too long":
    output = place / ("n" * 300 + suffix)
  elif obstacle == "read only":
    block = read_only(place)
  elif obstacle == "full":
    block = full_disk(0)
    if not is_folder:
      output.write_text("mine")
  before, arguments = tree(place), [part.format(output=output, **given) for part in template]
  with block:
    code = main(arguments)
  error = capsys.readouterr().err
  assert code == 2 and error.startswith("lmjax: ") and error.count("\n") == 1, error
  assert str(output)[:200] in error or name in error
  left = {path: content for path, content in tree(place).items() if before.get(path, b"none") != content}
  if obstacle == "full" and name in ("train", "seeds", "suite", "prepare", "index"):  # which resume what they began
    assert all(not content for content in left.values()), left
  else:
    assert not left and tree(place) == before


def test_a_profile_that_cannot_be_written_is_one_line(tmp_path, capsys):
  (tmp_path / "profile").write_text("mine")
  assert main(["train", *DEBUG, "--profile", "1:1", "--workdir", str(tmp_path)]) == 2
  assert "profile could not be written: File exists" in capsys.readouterr().err and len(tree(tmp_path)) == 1


def test_a_profile_on_a_full_disk_is_one_line(tmp_path):
  (tmp_path / "profile").mkdir()
  (tmp_path / "profile" / "mine").write_text("mine")
  limited = (
    "bash",
    "-c",
    'ulimit -f 20; exec "$@"',
    "bash",
  )  # KiB of a file: jax's profiler needs a process of its own
  process = subprocess.run(
    [*limited, sys.executable, "-m", "lmjax", "train", *DEBUG, "--profile", "1:1", "--workdir", str(tmp_path)],
    cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"},
    capture_output=True, text=True,
  )  # fmt: skip
  error = process.stderr
  assert (
    process.returncode == 2
    and error.startswith("lmjax: ")
    and error.count("\n") == 1
    and "profile could not be written" in error
  ), error
  assert tree(tmp_path / "profile") == {"mine": b"mine"} and not list(tmp_path.glob("*.part"))


def tokenizers():
  yield from (Bytes(), registry.train("characters", ["some text"], 0), registry.train("bpe", ["some text"], 300))
  yield words.train(["some text"], 9)
  yield Sentinels(Bytes(), 4)


@pytest.mark.parametrize("size", [0, 5, 40])
def test_a_full_disk_leaves_a_run_folder_as_it_was(size, tmp_path):
  settings = config.load("configs/quickstart.py:debug")
  run = epath.Path(tmp_path / "run")
  experiment.check_or_save_config(settings, Bytes(), run)
  log = logs.Log(run, logs.LogConfig(tensorboard=False), 0, settings)
  log.write(1, {"train_loss": 1.0})
  log.close()
  before = tree(tmp_path)
  with full_disk(size):
    with pytest.raises(UserError, match="config.json could not be written: File too large"):
      experiment.check_or_save_config(settings | {"steps": 7}, Bytes(), run)
    with pytest.raises(UserError, match="metrics.jsonl could not be written: File too large"):
      log.write(2, {"train_loss": 2.0})
    with pytest.raises(UserError, match="summary.json could not be written: File too large"):
      log.summary({"a": "b" * 100})
    for tokenizer in tokenizers():
      with pytest.raises(UserError, match="could not be written: File too large"), files.new_folder(run / "new") as new:
        tokenizer.save(new)
        files.write(new / "last", "x" * 100)
  assert tree(tmp_path) == before


def test_a_run_folder_is_not_rewritten_without_need(tmp_path):
  settings, run = config.load("configs/quickstart.py:debug"), epath.Path(tmp_path)
  experiment.check_or_save_config(settings, Bytes(), run)
  os.utime(run / "config.json", (1, 1))
  experiment.check_or_save_config(settings, Bytes(), run)
  assert os.stat(run / "config.json").st_mtime == 1


@pytest.mark.parametrize("content", [b"", b'{"format": 2, "see', b"\xff\x00", b"[]"])
def test_a_corrupt_config_is_written_again_by_the_train_command(content, tmp_path, capsys):
  settings, run = config.load("configs/quickstart.py:debug"), epath.Path(tmp_path)
  experiment.check_or_save_config(settings, Bytes(), run)
  whole = (run / "config.json").read_bytes()
  (run / "config.json").write_bytes(content)
  with pytest.raises(UserError, match="repeat its lmjax train command"):
    experiment.load_config(run)
  experiment.check_or_save_config(settings, Bytes(), run)
  assert (run / "config.json").read_bytes() == whole
  assert (run / "config.json.corrupt").read_bytes() == content
  assert "it is written again" in capsys.readouterr().out


def test_metrics_are_read_whatever_a_kill_left(tmp_path):
  run, good = epath.Path(tmp_path), [{"step": 1, "train_loss": 2.5}, {"step": 2, "train_loss": float("inf")}]
  lines = [json.dumps(line).encode() for line in good]
  for end in (
    b"",
    b'{"step": 3, "tr',
    b"\xff\xfe",
    b"[" * 5000,
    b'{"step": "x"}',
    b'{"step": 3, "train_loss": ' + b"9" * 400 + b"}",
    b'{"step": 3, "a": "b"}',
    b"null",
    b"\0" * 9,
  ):
    (run / "metrics.jsonl").write_bytes(b"\n".join([lines[0], end, lines[1], end]))
    assert logs.read_metrics(run) == good
    logs.Log(run, logs.LogConfig(tensorboard=False), 1, {}).close()  # a resumed run has whole lines only
    assert (run / "metrics.jsonl").read_bytes() == lines[0] + b"\n"


def test_scalars_for_tensorboard(tmp_path):
  from tensorboardX.proto.event_pb2 import Event

  log = logs.Log(epath.Path(tmp_path), logs.LogConfig(), 4, {})
  log.write(5, {"train_loss": 1.5})
  log.close()
  (file,) = (tmp_path / "tensorboard").iterdir()
  data, events = file.read_bytes(), []
  while data:
    size = int.from_bytes(data[:8], "little")
    events.append(Event.FromString(data[12 : 12 + size]))
    data = data[16 + size :]
  assert events[1].step == 5 and events[1].session_log.status
  assert [(value.tag, value.simple_value) for value in events[-1].summary.value] == [("train/loss", 1.5)]


def test_a_full_disk_does_not_leave_tensorboard_waiting(tmp_path):
  log = logs.Log(epath.Path(tmp_path), logs.LogConfig(), 0, {})
  with full_disk(2000), pytest.raises(UserError, match="could not be written"):
    for step in range(1, 1000):
      log.write(step, {"train_loss": 1.5})
  log.close()


def test_standard_output_on_a_full_disk():
  if not pathlib.Path("/dev/full").exists() or not stat.S_ISCHR(os.stat("/dev/full").st_mode):
    pytest.skip("needs /dev/full")
  with open("/dev/full", "w") as out:
    process = subprocess.run(
      [sys.executable, "-m", "lmjax", "plan", "--strubell", "--json"],
      cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, stdout=out, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
  assert process.returncode == 2 and process.stderr.count("\n") == 1, process.stderr
  assert "No space left" in process.stderr


def test_names_in_tables_are_printable(capsys):
  """Names come from files: escape sequences do not reach a terminal, and brackets are no markup."""
  show(
    DisplayTable(
      "[/b] a\x1b[2Jtitle", ("[bold]a", "b"), (("x\x1b]0;name\x07", "[/red]"), ("line\nbreak", "\u202e"))
    ).rich()
  )
  out = capsys.readouterr().out
  assert all(line.isprintable() for line in out.splitlines()) and "\\x1b[2Jtitle" in out and "[/red]" in out
  assert "\x1b" not in str(DisplayTable("", ("a",), (("\x1b",),)))


def test_the_console_prints_text_as_it_is(capsys):
  logs.console.print("runs/:smile:/[red]a[/red]")
  assert capsys.readouterr().out == "runs/:smile:/[red]a[/red]\n"


OPENS = re.compile(r"write_text\(|write_bytes\(|open\([^)]*[\"'][wax]b?[\"']|json\.loads?\(")
ALLOWED = {  # the helpers, an archive inside of a file, what a process says to another, and a config's own data
  "utils/files.py", "inference/output.py", "data/sources/shards.py", "parallel/processes.py", "config.py",
  "checkpoint.py", "data/sources/records.py", "data/chat/template.py", "data/chat/worker.py",
}  # fmt: skip


def test_files_are_written_and_json_is_read_by_the_helpers():
  for path in sorted((ROOT / "lmjax").rglob("*.py")):
    name = str(path.relative_to(ROOT / "lmjax"))
    if name not in ALLOWED and "huggingface" not in path.parts:
      for number, line in enumerate(path.read_text().splitlines(), 1):
        assert not OPENS.search(line), f"{name}:{number}: {line.strip()}: use lmjax.utils.files"
