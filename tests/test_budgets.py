"""The budgets: files stay short, the path of a training run stays short, imports run one way."""

import ast
import functools
import pathlib
import re

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "lmjax"
FORBIDDEN = ("tensorflow", "torch", "transformers", "clu")

# Lines of a training run: of the trunk, which every run imports, and of what its config names besides. Shipped configs
# keep a tenth of each budget free, so that a feature has room.
TRUNK_LINES, CONFIG_LINES = 3500, 2000
HEADROOM = 0.9

# The order of imports: a file imports those of its own line and of lines above it. A folder stands for its files.
ORDER = (
  ("utils",),
  ("parallel",),
  ("layers",),
  ("models",),
  ("decode",),
  ("data",),
  ("tasks",),
  ("optim", "compression"),
  ("config", "logs", "evals"),
  ("state",),
  ("checkpoint",),
  ("experiment",),
  ("storage",),
  ("planning",),
  ("inference",),
  ("train", "notebook", "testing"),
  ("commands",),
  ("__main__",),
)
RANK = {name: i for i, names in enumerate(ORDER) for name in names}
# What a folder does not see although it comes earlier.
BLIND = {
  "layers": ("config",),
  "models": ("data",),
  "decode": ("data",),
  "data": ("parallel", "layers", "models", "decode"),
}


@functools.cache
def imports(path: pathlib.Path) -> set[str]:
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      names.add(node.module)
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
  return names


def file_of(module: str) -> pathlib.Path | None:
  path = ROOT / module.replace(".", "/")
  return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.exists()), None)


def reached(names: set[str]) -> set[pathlib.Path]:
  """Returns the files that importing some modules imports, packages' own files included."""
  waiting, files = {file_of(name) for name in names}, set()
  while waiting:
    path = waiting.pop()
    if path and path not in files:
      files.add(path)
      waiting |= {file_of(name) for name in imports(path) if name.startswith("lmjax")}
  return {path for path in files if path.read_text().strip()}


def lines_of(paths: set[pathlib.Path]) -> int:
  return sum(len(path.read_text().splitlines()) for path in paths)


def test_files_are_short():
  for folder in ("lmjax", "configs", "launch", "tests", "benchmarks"):
    for path in (ROOT / folder).rglob("*.py"):
      lines = len(path.read_text().splitlines())
      assert lines <= 400, f"{path.relative_to(ROOT)} has {lines} lines"
  for path in (PACKAGE / "commands").glob("*.py"):
    assert len(path.read_text().splitlines()) <= 120, f"{path.name}: a command parses, calls and prints"


@pytest.mark.parametrize("config", sorted(path.name for path in (ROOT / "configs").glob("*.py")))
def test_a_training_run_is_short(config):
  text = (ROOT / "configs" / config).read_text()
  named = {word.split(":")[0] for word in re.findall(r'"(lmjax\.[\w.]+:\w+|lmjax\.[\w.]+:(?=\{))', text)}
  trunk = reached({"lmjax.train"})
  rest = reached({"lmjax.train"} | named) - trunk
  assert lines_of(trunk) <= HEADROOM * TRUNK_LINES, lines_of(trunk)
  assert lines_of(rest) <= HEADROOM * CONFIG_LINES, (lines_of(rest), sorted(str(p.relative_to(ROOT)) for p in rest))


def test_imports_run_one_way():
  for path in PACKAGE.rglob("*.py"):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts[0] == "__init__":
      continue
    for name in imports(path):
      assert name.split(".")[0] not in FORBIDDEN, f"{path} imports {name}"
      assert name.split(".")[0] != "configs", f"{path} imports a config"
      target = name.split(".")[1] if name.startswith("lmjax.") else None
      if target in RANK and target != parts[0]:
        seen = RANK[target] <= RANK[parts[0]] and target not in BLIND.get(parts[0], ())
        assert seen, f"{path.relative_to(ROOT)} imports {name}"


def test_no_file_imports_itself_through_others():
  """Inside a folder too, there are no cycles."""
  files = {
    path: {file_of(n) for n in imports(path) if n.startswith("lmjax")} - {path} for path in PACKAGE.rglob("*.py")
  }
  files = {path: {p for p in found if p and p.name != "__init__.py"} for path, found in files.items()}
  done: set[pathlib.Path] = set()

  def visit(path: pathlib.Path, above: tuple[pathlib.Path, ...]) -> None:
    assert path not in above, " -> ".join(str(p.relative_to(PACKAGE)) for p in (*above, path))
    if path not in done:
      for other in files[path]:
        visit(other, (*above, path))
      done.add(path)

  for path in files:
    visit(path, ())


def test_only_checkpoint_imports_orbax_and_only_train_applies_updates():
  for path in PACKAGE.rglob("*.py"):
    text = path.read_text()
    if any(name.startswith("orbax") for name in imports(path)):
      assert path.name == "checkpoint.py", path
    called = any(isinstance(node, ast.Attribute) and node.attr == "apply_updates" for node in ast.walk(ast.parse(text)))
    assert not called or path.name == "train.py", path


def test_no_mesh_axis_outside_parallel():
  for path in PACKAGE.rglob("*.py"):
    if "parallel" not in path.parts:
      assert '"fsdp"' not in path.read_text(), path


def test_the_platform_is_tested_in_one_module():
  for path in (PACKAGE / "layers").rglob("*.py"):
    if path.name != "backend.py":
      assert not re.search(r"\bplatform\(\)|default_backend\(\)", path.read_text()), path
  for folder in ("models", "tasks", "decode", "evals"):
    for path in (PACKAGE / folder).rglob("*.py"):
      assert not re.search(r"\bplatform\b|default_backend", path.read_text()), path
