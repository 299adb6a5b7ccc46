"""Opening a folder runs no code from it: names in every place of every config, through every command."""

import copy
import dataclasses
import importlib
import json
import pkgutil
import re
import shlex
import shutil
import sys
import threading
import typing

import pytest
from flax import linen as nn

import lmjax
from lmjax import config, experiment, notebook
from lmjax.__main__ import main
from lmjax.compression.base import ParamTransform
from lmjax.data.objectives.denoising import Objective
from lmjax.data.pipeline import Reader
from lmjax.data.sources.base import Source
from lmjax.data.sources.indexed import Clean
from lmjax.data.tokenizers import registry
from lmjax.data.tokenizers.base import Bytes, Tokenizer
from lmjax.evals.base import Evaluator
from lmjax.storage.run import RunFolder
from lmjax.tasks.base import Base
from lmjax.utils import trust
from lmjax.utils.errors import UserError
from tests.conftest import ROOT

CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.py"))
CLEAN = "lmjax.data.sources.text:gutenberg_body"
CODE = """import dataclasses, pathlib
from lmjax.compression.base import Identity
pathlib.Path(__file__).with_suffix(".ran").touch()

@dataclasses.dataclass(frozen=True)
class Plain(Identity):
  pass

class Tokens:
  @classmethod
  def load(cls, folder):
    raise SystemExit("loaded")
"""
# Of lmjax, but what no place of a config asks for.
WRONG = (
  "lmjax.train:train",
  "lmjax.commands.convert:main",
  "lmjax.config:json",
  "lmjax.notebook:Run",
  "lmjax.config:KEYS",
  "lmjax.storage.huggingface.folder:CausalLM",  # imported there, and defined elsewhere
)


@pytest.fixture(scope="module")
def canary(tmp_path_factory):
  """The module `canary`, which leaves a file when it is imported; returns a function that says whether it was."""
  folder = tmp_path_factory.mktemp("canary")
  (folder / "canary.py").write_text(CODE)

  def ran():
    was = (folder / "canary.ran").exists()
    (folder / "canary.ran").unlink(missing_ok=True)
    sys.modules.pop("canary", None)
    return was

  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(folder)
    yield ran


@pytest.fixture(scope="module")
def trained(canary, tmp_path_factory):
  """A run with a class of the user, of one step."""
  run = tmp_path_factory.mktemp("trained") / "run"
  assert main([*train_arguments(), "--workdir", str(run)]) == 0 and canary()
  return run


def train_arguments(kind="canary:Plain"):
  text = {"kind": "lmjax.data.sources.text:TextFiles", "files": str(ROOT / "LICENSE")}
  options = {"steps": 1, "evals.every": 0, "model.depth": 1, "data.source": text, "data.validation": text}
  arguments = [f"--config.{key}={value}" for key, value in (options | {"transform.kind": kind}).items()]
  return ["train", "--config", "configs/shakespeare_char.py:debug", *arguments]


@pytest.fixture
def run(trained, tmp_path):
  """A run folder whose config.json may be written to; its checkpoint is that of `trained`."""
  return shutil.copytree(trained, tmp_path / "run")


def settings_of(name):
  """Returns the plain data of a config, with every function-valued field named."""
  settings = config.load(f"configs/{name}:debug")
  for part in ("source", "validation"):
    if name != "transformer.py":
      settings["data"][part] = {"kind": "lmjax.data.sources.text:TextFiles", "files": "x", "clean": CLEAN}
  return settings


def places(settings, where=()):
  """Yields the keys of everything that names an object, or could: kinds, functions, and sections without a kind."""
  for key, value in settings.items():
    if isinstance(value, dict):
      yield (*where, key, "kind")
      yield from places(value, (*where, key))
    if key == "clean":
      yield (*where, key)


def substituted(settings, place, name):
  changed = copy.deepcopy(settings)
  section = changed
  for key in place[:-1]:
    section = section[key]
  section[place[-1]] = name
  return changed


def write(folder, settings):
  (folder / "config.json").write_text(json.dumps({"format": config.FORMAT} | settings))


@pytest.mark.parametrize("name", CONFIGS)
def test_no_place_of_a_config_takes_a_foreign_name(name, tmp_path, canary):
  """Read from a folder; nothing is imported, and the error says where the name is and how to trust it."""
  settings = settings_of(name)
  Bytes().save(tmp_path / "tokenizer")
  assert len(list(places(settings))) >= 14
  for place in places(settings):
    write(tmp_path, substituted(settings, place, "canary:Plain"))
    with pytest.raises(trust.UntrustedError, match=rf"^config\.{'.'.join(place)}: .*config.json names 'canary:Plain'"):
      experiment.build(experiment.load_config(tmp_path), tmp_path)
    assert not canary(), place


def test_no_place_takes_what_lmjax_defines_for_another(tmp_path):
  """Functions, modules, values, and classes that are neither derived from the base nor have the protocol."""
  Bytes().save(tmp_path / "tokenizer")
  done = set()
  for settings in map(settings_of, CONFIGS):
    for place in set(places(settings)) - done:
      for name in (*WRONG, "lmjax.tasks.bilm:jax"):  # a module that has been renamed
        write(tmp_path, substituted(settings, place, name))
        with pytest.raises(UserError, match=rf"^config\.{'.'.join(place)}\b"):
          experiment.build(experiment.load_config(tmp_path), tmp_path)
      done.add(place)


@pytest.mark.parametrize("name", ["canary:Plain", *WRONG])
def test_objects_inside_others_are_checked_too(name, canary):
  """In the parts of mixtures and chains, and in fields that may be left out."""
  source = {"kind": "lmjax.data.sources.python_docs:PythonDocs"}
  for spec, base, place in (
    (
      {"kind": "lmjax.data.streams:Mixture", "parts": {"a": {"source": source | {"kind": name}}}},
      Source,
      "parts.a.source",
    ),
    ({"kind": "lmjax.compression.chain:Chain", "transforms": {"a": {"kind": name}}}, ParamTransform, "transforms.a"),
    ({"kind": "lmjax.tasks.encode:Encode", "classifier": {"kind": name, "classes": 2}}, Base, "classifier"),
    (
      {
        "kind": "lmjax.data.objectives.denoising:Denoising",
        "length": 8,
        "source": source,
        "validation": source,
        "objective": {"kind": "lmjax.data.objectives.denoising:MixtureOfDenoisers", "parts": {"a": {"kind": name}}},
      },
      Reader,
      "objective.parts.a",
    ),
  ):
    with pytest.raises(trust.UntrustedError, match=rf"^config\.x\.{place}\.kind: "):
      config.build(trust.mark(spec, "a file", set()), "x", None, base)
  assert not canary()


def test_what_a_folder_can_name_is_known():
  """Of everything in lmjax: the classes in the package for their place, and one function of bytes."""
  found = {
    expected: set() for expected in (Reader, Source, Clean, Objective, Tokenizer, Evaluator, ParamTransform, Base)
  }
  for module in pkgutil.walk_packages(lmjax.__path__, "lmjax."):
    try:
      attributes = vars(importlib.import_module(module.name))
    except UserError as error:
      assert "pip install 'lmjax[" in str(error)  # an extra that is not installed
      continue
    for attribute in attributes:
      for expected, names in found.items():
        try:
          trust.load(trust.mark(f"{module.name}:{attribute}", "a file"), "a place", expected)
        except trust.UntrustedError:
          continue
        names.add(f"{module.name}:{attribute}")
  packages = {
    Reader: "objectives|pipeline",
    Source: "sources|streams:Mixture",
    Objective: "objectives",
    Tokenizer: "tokenizers",
  }
  packages = {key: rf"data\.({value})" for key, value in packages.items()}
  packages |= {
    Evaluator: r"evals|decode\.(beam:Beam|sample:Sampler|shared_prefix:Prefix|continuous:Contin|speculative:Specul)",
    ParamTransform: "compression",
    Base: "tasks",
  }
  assert found.pop(Clean) == {"lmjax.data.sources.text:gutenberg_body"}
  for expected, names in found.items():
    assert len(names) > 1 and all(re.match(rf"lmjax\.({packages[expected]})", name) for name in names), names


def commands(folder, tmp_path):
  """Yields the arguments of every command that opens a folder."""
  (tmp_path / "in.txt").write_text("a\n")
  yield ["show", folder]
  yield ["generate", "--workdir", folder, "--prompt", "a"]
  yield ["evaluate", "--workdir", folder]
  yield ["embed", "--workdir", folder, "--input", tmp_path / "in.txt", "--output", tmp_path / "out.npz"]
  yield ["fill", "--workdir", folder, "a [MASK]"]
  yield ["convert", "--input", folder, "--output", tmp_path / "out"]
  yield ["prepare", "--inspect", folder]


def test_no_command_takes_a_foreign_name(run, tmp_path, canary, capsys):
  every = {place: settings for settings in map(settings_of, CONFIGS) for place in places(settings)}
  for place, settings in every.items():
    write(run, substituted(settings, place, "canary:Plain"))
    for arguments in commands(run, tmp_path):
      arguments = list(map(str, arguments))
      if arguments[0] == "prepare" and place[-1] == "clean" and place[0] != "data":
        continue
      capsys.readouterr()
      assert main(arguments) == 2 and not canary(), (place, arguments)
      error = capsys.readouterr().err
      assert error.startswith(f"lmjax: config.{'.'.join(place)}: {run}/config.json names 'canary:Plain'"), error
      assert error.count("\n") == 1
      assert error.endswith(f": {shlex.join(['lmjax', *arguments, '--trust'])}\n"), error


def test_the_printed_command_trusts_the_folder(trained, canary, capsys, monkeypatch):
  assert main(["show", str(trained), "--depth", "1"]) == 2
  command = shlex.split(capsys.readouterr().err.rpartition(": lmjax ")[2])
  assert main(command) == 0 and canary()
  assert main(["show", str(trained)]) == 2 and not canary(), "trust ends with the command"
  monkeypatch.setenv("LMJAX_TRUST", "other,canary")
  assert main(["show", str(trained)]) == 0 and canary()
  monkeypatch.setenv("LMJAX_TRUST", "other,canary.inner")
  assert main(["show", str(trained)]) == 2 and not canary()


def test_the_notebook_trusts_where_it_is_told_to(trained, canary):
  """Each run by itself, whenever and in whatever thread its methods are called."""
  kind = lambda run: run.saved.experiment.transform.__class__.__module__  # noqa: E731
  with pytest.raises(trust.UntrustedError, match="trust=True"):
    kind(notebook.load(trained))
  mine, others = notebook.load(trained, trust=True), notebook.load(trained)
  seen = []
  thread = threading.Thread(target=lambda: seen.append(kind(mine)))
  thread.start()
  thread.join()
  assert seen == ["canary"] and canary()
  for call in (lambda: kind(others), lambda: kind(notebook.load(trained)), lambda: others.table()):
    with pytest.raises(trust.UntrustedError):
      call()
  assert not canary()


def test_what_the_user_names_is_trusted(trained, run, tmp_path, canary, capsys):
  """By the config of a run that is resumed, and by options; the names in the folder still are not."""
  assert main([*train_arguments(), "--workdir", str(run)]) == 0 and canary()
  assert "is finished" in capsys.readouterr().out
  other = train_arguments("lmjax.compression.base:Identity")
  assert main([*other, "--workdir", str(run)]) == 2 and not canary()
  assert "config.transform.kind was 'canary:Plain'" in capsys.readouterr().err
  assert main([*other, f"--config.start.path={trained}", "--workdir", str(tmp_path / "new")]) == 2 and not canary()
  assert "config.transform.kind" in capsys.readouterr().err
  saved = json.loads((run / "config.json").read_text())
  write(run, substituted(saved, ("transform", "kind"), "lmjax.compression.base:Identity"))
  mine = {"data.source.kind": "canary:Tokens"}
  with pytest.raises(UserError, match=r"config\.data\.source\.\w+: no such key"):
    RunFolder(run).load(overrides=mine)
  assert canary()


@pytest.mark.parametrize("kind", ["canary:Tokens", "os:system", *WRONG])
def test_tokenizers_are_lmjax_classes(kind, tmp_path, canary, capsys):
  """In a folder, in that of a run, and in one that a config names."""
  for folder in (tmp_path / "alone", tmp_path / "run" / "tokenizer"):
    folder.mkdir(parents=True)
    (folder / "kind.json").write_text(json.dumps({"kind": kind}))
    for path in {folder, folder.parent if folder.name == "tokenizer" else folder}:
      capsys.readouterr()
      assert main(["tokenizer", "encode", "--path", str(path), "a"]) == 2 and not canary()
      assert f"kind.json names '{kind}'" in capsys.readouterr().err
  with pytest.raises(trust.UntrustedError, match="kind.json names"):
    config.build({"path": str(tmp_path / "alone")}, "data.tokenizer", registry.TokenizerConfig).make(())
  assert not canary()
  if kind == "canary:Tokens":
    with pytest.raises(SystemExit, match="loaded"):
      main(["tokenizer", "encode", "--path", str(tmp_path / "alone"), "a", "--trust"])
    assert canary()


def test_a_tokenizer_of_the_config_is_loaded_when_a_run_resumes(tmp_path, canary):
  """Its class need not be the one that the config names, if the module is."""
  (tmp_path / "tokenizer").mkdir()
  (tmp_path / "tokenizer" / "kind.json").write_text('{"kind": "canary:Tokens"}')
  settings = config.load("configs/quickstart.py:debug")
  with pytest.raises(trust.UntrustedError):
    experiment.build(settings, tmp_path)
  with pytest.raises(SystemExit, match="loaded"):
    experiment.build(substituted(settings, ("transform", "kind"), "canary:Plain"), tmp_path)
  assert canary()


def test_a_name_that_is_no_name_is_refused(tmp_path):
  for name in (5, None, [], "x", "x:", ":x", "lmjax..train:train", "lmjax:json", "a b:c", "__import__('os'):system"):
    with pytest.raises(UserError, match="^config.task.kind"):
      config.resolve(trust.mark(name, "a file", set()), "task.kind", Base)


def test_every_place_says_what_it_expects():
  """A kind without a base is taken from no folder: every call of build outside of config names one."""
  with pytest.raises(trust.UntrustedError):
    config.build(trust.mark({"kind": "lmjax.compression.base:Identity"}, "a file", set()), "transform")
  assert dataclasses.is_dataclass(config.build({"kind": "lmjax.compression.base:Identity"}, "transform"))
  for name, base in (("lmjax.tasks.base:Base", Base), ("lmjax.models.heads:Classifier", nn.Module)):
    with pytest.raises(UserError, match="is not what a config can name here"):
      config.build(trust.mark({"kind": name, "classes": 2}, "a file"), "x", None, base)
  assert typing.get_type_hints(registry.TokenizerConfig)
