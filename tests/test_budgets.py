"""The budgets: files stay short, the path of a training run stays short, imports run one way."""

import ast
import functools
import io
import pathlib
import re
import tokenize

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "lmjax"
FORBIDDEN = ("tensorflow", "torch", "transformers", "clu")

# Lines of code of a training run: of the trunk, which every run imports, and of what its config names besides.
# Docstrings, comments and blank lines are not counted: no explanation is left out to meet a budget. A part of each
# budget stays free, so that a feature has room.
TRUNK_LINES, CONFIG_LINES = 3500, 2000
ROLLOUT_LINES = 1050  # besides these of a run that learns from its own answers, which it also samples and scores
TOKENIZERS = ("lmjax.data.tokenizers.bpe", "lmjax.data.tokenizers.subword")  # of a config's algorithm, the longest
TRUNK_FREE, CONFIG_FREE = 0.10, 0.10

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
  ("sections", "trackers", "curves", "logs", "evals"),
  ("config",),
  ("state",),
  ("checkpoint",),
  ("experiment",),
  ("screen",),
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
  "layers": ("sections", "config"),
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
  return sum(map(code_lines, paths))


@functools.cache
def code_lines(path: pathlib.Path) -> int:
  source = path.read_text()
  documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
  nodes = [n for n in ast.walk(ast.parse(source)) if isinstance(n, documented) and ast.get_docstring(n) is not None]
  docstrings = {line for n in nodes for line in range(n.body[0].lineno, n.body[0].end_lineno + 1)}
  layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
  tokens = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type not in layout]
  return len({line for t in tokens for line in range(t.start[0], t.end[0] + 1)} - docstrings)


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
  if re.search(r"beams=[^01]", text):
    named.add("lmjax.decode.beam")
  trunk = reached({"lmjax.train"})
  rest = reached({"lmjax.train", *TOKENIZERS} | named) - trunk
  assert lines_of(trunk) <= (1 - TRUNK_FREE) * TRUNK_LINES, lines_of(trunk)
  most = CONFIG_LINES + (ROLLOUT_LINES if any(name.startswith("lmjax.tasks.rl.") for name in named) else 0)
  assert lines_of(rest) <= (1 - CONFIG_FREE) * most, (
    lines_of(rest),
    sorted(str(p.relative_to(ROOT)) for p in rest),
  )


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


ARRAY_ATTRIBUTES = {"astype", "T", "at", "dtype", "reshape", "shape", "swapaxes", "transpose", "sum", "ndim"}


def trees(*folders):
  """Yields (path, syntax tree) of every file in folders of the package."""
  for folder in folders:
    for path in sorted((PACKAGE / folder).rglob("*.py")):
      yield path.relative_to(ROOT), ast.parse(path.read_text())


def test_models_and_tasks_do_not_depend_on_the_platform():
  """They do not ask for the platform, of which layers/backend.py alone knows, nor whether a model has a method."""
  for path, tree in trees("models", "tasks"):
    for node in ast.walk(tree):
      if not isinstance(node, ast.Call):
        continue
      name, where = ast.unparse(node.func).split(".")[-1], f"{path}:{node.lineno}"
      assert name not in ("platform", "default_backend"), f"{where} asks for the platform"
      if name == "hasattr":
        assert ast.unparse(node.args[0]) == "config", f"{where}: use `kind`, not hasattr"


def raw_reads(tree: ast.AST):
  """Yields (node, why) wherever a kernel or a table is read as an array, which fails for a Leaf.

  Such a parameter is what is subscripted by "kernel", or called `kernel`, `table`, `.table` or `.values`; an array has
  a name with its shape (`table_VxD`) or comes from `leaves.dense`.
  """
  made_dense = {
    target.id
    for node in ast.walk(tree)
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
    for target in node.targets
    if isinstance(target, ast.Name) and ast.unparse(node.value.func) in ("leaves.dense", "dense")
  }

  def parameter(node):
    if isinstance(node, ast.Name):
      return node.id in ("kernel", "table") and node.id not in made_dense
    return isinstance(node, ast.Attribute) and node.attr in ("table", "values")

  for node in ast.walk(tree):
    if isinstance(node, ast.Subscript):
      if isinstance(node.slice, ast.Constant) and node.slice.value == "kernel":
        yield node, "takes a kernel out of a tree"
      if parameter(node.value):
        yield node, "indexes a parameter: use leaves.take or leaves.dense"
    if isinstance(node, ast.Attribute) and node.attr in ARRAY_ATTRIBUTES and parameter(node.value):
      yield node, "reads a parameter as an array: use leaves.dense"
    if isinstance(node, ast.BinOp) and (parameter(node.left) or parameter(node.right)):
      yield node, "computes with a parameter: use leaves.einsum"
    if isinstance(node, ast.Call):
      function = ast.unparse(node.func)
      if function.startswith(("jnp.", "jax.lax.", "jax.nn.")) and any(map(parameter, node.args)):
        yield node, "computes with a parameter: use leaves.einsum, take or scores"
      if function.endswith(".get") and node.args and ast.unparse(node.args[0]) == "'kernel'":
        yield node, "takes a kernel out of a tree"
      if function == "self.param" and ast.unparse(node.args[0]) != "'layers'":
        yield node, "creates a parameter: use leaves.param"


def test_kernels_and_tables_are_read_by_leaves_alone():
  """As far as syntax says it; backend.py's products get arrays, which leaves.py gives them.

  transposed.py defines a leaf type, whose components are arrays.
  """
  for path, tree in trees("layers", "models", "tasks"):
    if path.name in ("leaves.py", "transposed.py", "backend.py"):
      continue
    for node, why in raw_reads(tree):
      raise AssertionError(f"{path}:{node.lineno}: {ast.unparse(node)!r} {why}")


def test_raw_reads_are_seen():
  for code in (
    'params["mlp"]["kernel"]', "kernel.astype(x.dtype)", "x @ kernel", "jnp.einsum('bd,dk->bk', x, kernel)",
    "self.embed.table.T", "table.values[ids]", "jnp.take(table, ids)", 'params.get("kernel")',
    'self.param("kernel", init, shape)',
  ):  # fmt: skip
    assert list(raw_reads(ast.parse(code))), code
  for code in ("kernel = leaves.dense(p, dtype)\nkernel.T", "leaves.einsum(equation, x, kernel)", "table_VxD.T"):
    assert not list(raw_reads(ast.parse(code))), code
