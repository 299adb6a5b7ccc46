"""Configs: strict, and wrong ones end in one clear line."""

import ast
import json

import pytest

from lmjax import config
from lmjax.optim import Optimizer
from lmjax.utils.errors import UserError
from tests.conftest import ROOT

QUICK = "configs/quickstart.py"


def test_variants():
  choice = config.variant("size=b,debug", size=("a", "b"), files="x", debug=False)
  assert (choice.size, choice.files, choice.debug) == ("b", "x", True)
  with pytest.raises(UserError, match="no variant 'sise'; did you mean 'size'"):
    config.variant("sise=b", size=("a", "b"))
  with pytest.raises(UserError, match="size=c"):
    config.variant("size=c", size=("a", "b"))


def test_what_may_be_below_zero_is_said_by_its_class():
  """A field whose own default is negative could not be repeated in a config otherwise."""
  seen = set()
  for path in (ROOT / "lmjax").rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.ClassDef):
        fields = {f.target.id: f.value for f in node.body if isinstance(f, ast.AnnAssign) and f.value is not None}
        below = {
          name for name, value in fields.items() if isinstance(value, ast.UnaryOp) and ast.unparse(value) != "-0"
        }
        below -= {name for name, value in fields.items() if isinstance(getattr(value, "op", None), ast.Not)}
        allowed = ast.literal_eval(fields["negative"]) if "negative" in fields else ()
        assert below <= set(allowed), f"{path.name}: {node.name}: {below}"
        seen |= {f"{node.name}.{name}" for name in below}
  assert {"MeshShape.data", "Conll.tag"} <= seen


def test_overrides():
  loaded = config.load(QUICK, {"optim.peak_lr": "3e-4", "optim.ema": "0.9", "task.packed": "true"})
  assert loaded["optim"]["peak_lr"] == 3e-4 and loaded["optim"]["ema"] == 0.9 and loaded["task"]["packed"] is True
  assert json.loads(json.dumps(loaded)) == loaded


@pytest.mark.parametrize(
  "reference, overrides, words",
  [
    ("configs/quikstart.py", {}, "did you mean 'quickstart'"),
    (QUICK + ":debgu", {}, "did you mean 'debug'"),
    (QUICK, {"optm.peak_lr": "1"}, "did you mean 'optim'"),
    (QUICK, {"optim.peak_lr.x": "1"}, "optim.peak_lr: no such section"),
  ],
)
def test_what_does_not_load(reference, overrides, words):
  with pytest.raises(UserError, match=words):
    config.load(reference, overrides)


@pytest.mark.parametrize(
  "spec, words",
  [
    (dict(peek_rate=1.0), "config.optim.peek_rate: no such key; did you mean 'peak_lr'"),
    (dict(peak_lr="fast"), "config.optim.peak_lr is a number, not 'fast'"),
    (dict(warmup=1.5), "config.optim.warmup is a whole number"),
    (dict(peak_lr=True), "is a number, not True"),
    (dict(optimizer="adam"), "config.optim: optimizer must be one of"),
    (dict(lr_multipliers=3), "maps names to values"),
    (dict(frozen="x"), "is a list"),
    ("x", "is a section with keys"),
  ],
)
def test_what_does_not_build(spec, words):
  with pytest.raises(UserError, match=words):
    config.build(spec, "optim", Optimizer)


def test_numbers_may_be_written_either_way():
  built = config.build(dict(peak_lr=1, warmup=1e3), "optim", Optimizer)
  assert built.peak_lr == 1.0 and built.warmup == 1000 and isinstance(built.warmup, int)


@pytest.mark.parametrize(
  "name, words",
  [
    ("lmjax.tasks.causal_lm", "not of the form"),
    ("lmjax.tasks.nothing:CausalLM", "cannot import"),
    ("lmjax.tasks.causal_lm:CausalML", "did you mean 'CausalLM'"),
    (
      "lmjax.data.sources.text:Sentences",
      "known: TextFiles, gutenberg_body$",
    ),  # not what it imports
  ],
)
def test_names_that_do_not_resolve(name, words):
  with pytest.raises(UserError, match=words):
    config.resolve(name, "task.kind")


@pytest.mark.parametrize(
  "arguments, words",
  [
    (["trian"], "no command 'trian'; did you mean 'train'"),
    (["train", "--config", "configs/none.py", "--workdir", "w"], "no file configs/none.py"),
    (["train", "--workdir", "w"], "--config"),
    (["train", "--confg", "x", "--workdir", "w", "--config", QUICK], "did you mean '--config'"),
    (
      ["train", "--config", QUICK + ":debug", "--workdir", "W", "--config.model.heads=5"],
      "config.model: heads (5)",
    ),
    (["train", "--config", QUICK + ":debug", "--workdir", "W", "--config.batch=0"], "config.batch"),
    (
      ["train", "--config", QUICK + ":debug", "--workdir", "W", "--config.mesh.model=3"],
      "does not fit 1 device",
    ),
    (["train", "--config", QUICK + ":debug", "--workdir", "W", "--config.rules=fdsp"], "did you mean 'fsdp'"),
    (
      ["plan", "--config", QUICK + ":debug", "--topology", "cpu:2", "--config.mesh.model=2", "--config.mesh.data=1"],
      "model=2, but no sharding rule uses mesh axis 'model'; rule sets that do: tp, fsdp_tp",
    ),
    (["train", "--config", "configs/text.py:files=none/*", "--workdir", "W"], "no file matches 'none/*'"),
    (["train", "--config", QUICK + ":debug", "--workdir", "W", "--profile", "5"], "FIRST:LAST"),
    (["train", "--config", QUICK + ":debug", "--workdir", "W", "--config.model.width=" + "9" * 400], "is too large"),
    (
      ["train", "--config", QUICK + ":debug", "--workdir", "W", "--config.model.mlp=9223372036854775808"],
      "is too large",
    ),
    (["train", "--config", QUICK + ":debug", "--workdir", "W", "--config.batch=99999999"], "config.batch must be"),
    (["train", "--config", "configs/text.py:files=a\0/*", "--workdir", "W"], "has a null character"),
    (["generate", "--workdir", "nowhere", "--prompt", "x"], "nowhere does not exist"),
    (["generate", "--workdir", "nowhere"], "--prompt"),
    (["tokenizer", "encode", "x"], "--path"),
  ],
)
def test_commands_end_in_one_line_and_code_2(arguments, words, capsys, tmp_path, monkeypatch):
  from lmjax.__main__ import main

  arguments = [str(tmp_path / "w") if argument == "W" else argument for argument in arguments]
  assert main(arguments) == 2
  errors = capsys.readouterr().err.strip()
  assert words in errors and "\n" not in errors and errors.startswith("lmjax: ") and "lmjax: lmjax" not in errors


def test_traceback_shows_where(capsys):
  from lmjax.__main__ import main

  assert main(["train", "--config", "configs/none.py", "--workdir", "w", "--traceback"]) == 2
  errors = capsys.readouterr().err
  assert "Traceback" in errors and "config.py" in errors and errors.strip().splitlines()[-1].startswith("lmjax: ")
