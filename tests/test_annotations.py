"""Every public function of the package says what it takes and what it returns; mypy then holds it to that."""

import ast

import pytest

from tests.conftest import ROOT

IMPLIED = ("__init__", "setup")  # return None


def missing(body: list[ast.stmt], owner: str = "") -> list[str]:
  """Returns what is not annotated in the public functions and methods of a module or class."""
  names = []
  for node in body:
    if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
      names += missing(node.body, f"{node.name}.")
    if not isinstance(node, ast.FunctionDef) or (node.name.startswith("_") and not node.name.startswith("__")):
      continue
    static = any(
      isinstance(decorator, ast.Name) and decorator.id == "staticmethod" for decorator in node.decorator_list
    )
    arguments = [*node.args.posonlyargs, *node.args.args][bool(owner) and not static :] + node.args.kwonlyargs
    bare = [argument.arg for argument in arguments if argument.annotation is None]
    if node.returns is None and node.name not in IMPLIED and not node.name.startswith("__"):
      bare.append("return")
    names += [f"{node.lineno} {owner}{node.name}: {', '.join(bare)}"] if bare else []
  return names


@pytest.mark.parametrize("part", sorted(path.name for path in (ROOT / "lmjax").iterdir() if path.name != "__pycache__"))
def test_public_functions_are_annotated(part):
  path = ROOT / "lmjax" / part
  files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
  names = {str(f.relative_to(ROOT)): missing(ast.parse(f.read_text()).body) for f in files}
  assert not {file: lines for file, lines in names.items() if lines}
