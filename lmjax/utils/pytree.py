"""Parameter trees by path name."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax

Tree = Any


def name(path: tuple) -> str:
  """Returns `model/layers/mlp/up/kernel` for a path of jax.tree_util."""
  return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def named_leaves(tree: Tree) -> dict[str, Any]:
  """Returns {path name: leaf}, in the order of jax.tree.leaves."""
  return {name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def map_named(fn: Callable[[str, Any], Any], tree: Tree) -> Tree:
  """Maps fn(path name, leaf) over the tree."""
  return jax.tree_util.tree_map_with_path(lambda path, leaf: fn(name(path), leaf), tree)


def first_match(patterns: Mapping[str, Any], path_name: str, default: Any) -> Any:
  """Returns the value of the first regular expression that matches in the path name, otherwise the default."""
  for pattern, value in patterns.items():
    if re.search(pattern, path_name):
      return value
  return default


def inherit(tree: Tree, parents: Tree, values: Tree, default: Any) -> Tree:
  """Returns `tree` with each leaf replaced by the value of its parameter in `parents`.

  The parameter of a leaf is the one whose path is a suffix of the leaf's path and whose shape is the same: Adam's
  `mu/model/embed/table` inherits from `model/embed/table`. Other leaves (step counts, factored moments) get `default`.
  """
  pairs = zip(named_leaves(parents).items(), jax.tree.leaves(values), strict=True)
  known = {path: (leaf.shape, value) for (path, leaf), value in pairs}

  def find(path_name, leaf):
    parts = path_name.split("/")
    for start in range(len(parts)):
      shape, value = known.get("/".join(parts[start:]), (None, default))
      if shape == leaf.shape:
        return value
    return default

  return map_named(find, tree)
