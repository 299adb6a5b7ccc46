"""Law 5: budgets are tests. Files stay short, the path of a training run stays short, imports run one way."""

import ast
import pathlib

from tests.conftest import ROOT

PACKAGE = ROOT / "lmjax"
FORBIDDEN = ("tensorflow", "torch", "transformers", "clu")

# Each room may import those it names, and itself. The trunk (files of lmjax/ that are no door) may import every room.
ROOMS = {
  "utils": (),
  "parallel": ("utils",),
  "layers": ("parallel", "utils"),
  "models": ("layers", "parallel", "utils"),
  "decode": ("models", "layers", "parallel", "utils"),
  "data": ("utils",),
  "compression": ("layers", "utils"),
  "tasks": ("decode", "models", "layers", "parallel", "utils", "data"),
  "optim": ("utils",),
  "interop": ("models", "layers", "data", "parallel", "utils"),
  "evals": ("tasks", "decode", "models", "layers", "parallel", "data", "utils"),
  "planning": ("models", "parallel", "utils"),
}
TRUNK = ("config", "experiment", "state", "checkpoint", "inspection", "logs", "opening", "testing")
DOORS = (
  "__main__", "train", "evaluate", "generate", "embed", "fill", "convert", "show", "notebook", "plan", "prepare",
  "tokenizer",
)  # fmt: skip


def imports(path: pathlib.Path) -> set[str]:
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      found.add(node.module)
      found |= {f"{node.module}.{alias.name}" for alias in node.names}
  return found


def file_of(module: str) -> pathlib.Path | None:
  path = ROOT / module.replace(".", "/")
  return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.exists()), None)


def reached(names: set[str]) -> set[pathlib.Path]:
  waiting, found = {file_of(name) for name in names}, set()
  while waiting:
    path = waiting.pop()
    if path and path not in found:
      found.add(path)
      waiting |= {file_of(name) for name in imports(path) if name.startswith("lmjax")}
  return {path for path in found if path.read_text().strip()}


def test_files_are_short():
  for folder in ("lmjax", "configs", "launch", "tests", "benchmarks"):
    for path in (ROOT / folder).rglob("*.py"):
      lines = len(path.read_text().splitlines())
      assert lines <= 400, f"{path.relative_to(ROOT)} has {lines} lines"


def test_a_training_run_is_short():
  config = (ROOT / "configs" / "gpt2.py").read_text()
  named = {word.split(":")[0] for word in config.split('"') if word.startswith("lmjax.") and ":" in word}
  paths = reached({"lmjax.train"} | named)
  lines = sum(len(path.read_text().splitlines()) for path in paths)
  assert len(paths) <= 40, sorted(str(p.relative_to(ROOT)) for p in paths)
  assert lines <= 5000, lines


def test_imports_run_one_way():
  for path in PACKAGE.rglob("*.py"):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    for name in imports(path):
      assert name.split(".")[0] not in FORBIDDEN, f"{path} imports {name}"
      assert name.split(".")[0] != "configs", f"{path} imports a config"
      target = name.split(".")[1] if name.startswith("lmjax.") else None
      if target is None or target == "__version__":
        continue
      if len(parts) > 1:
        assert target == parts[0] or target in ROOMS[parts[0]], f"{path.relative_to(ROOT)} imports {name}"
      elif parts[0] in TRUNK or parts[0] in DOORS:
        plans = parts[0] in ("plan", "lottery") and target == "train"  # what they are about
        assert target not in DOORS or plans, f"{path.relative_to(ROOT)} imports the door {name}"
      else:
        assert parts[0] == "__init__", f"{parts[0]}.py is neither trunk nor door"


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
