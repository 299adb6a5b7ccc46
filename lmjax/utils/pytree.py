"""Parameter trees by path name."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax

Tree = Any


def name(path: tuple) -> str:
  """Returns `model/layers/mlp/up/kernel` for a path of jax.tree_util."""
  return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def named_leaves(tree: Tree, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
  """Returns {path name: leaf}, in the tree's own order."""
  return {name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)}


def map_named(fn: Callable[[str, Any], Any], tree: Tree, is_leaf: Callable[[Any], bool] | None = None) -> Tree:
  """Maps fn(path name, leaf) over the tree."""
  return jax.tree_util.tree_map_with_path(lambda path, leaf: fn(name(path), leaf), tree, is_leaf=is_leaf)


def first_match(patterns: Mapping[str, Any], path_name: str, default: Any) -> Any:
  """Returns the value of the first regular expression that matches in the path name, otherwise the default."""
  for pattern, value in patterns.items():
    if re.search(pattern, path_name):
      return value
  return default


def inherit(tree: Tree, parents: Mapping[str, tuple[tuple[int, ...], Any]], default: Any) -> Tree:
  """Gives every leaf of `tree` the values of the parameter that it belongs to, one for each of its dimensions.

  A leaf belongs to the parameter whose path occurs in its own: Adam's `mu/model/embed/table` and a quantized table's
  `model/embed/table/scale` belong to `model/embed/table`. A dimension whose size differs from the parameter's gets the
  default, and so does all of a leaf of another rank (a counter, a factored moment).

  Args:
    parents: path name -> (shape, values by dimension).
  """

  def find(path_name, leaf):
    parts = path_name.split("/")
    for end in range(len(parts), 0, -1):
      for start in range(end):
        shape, values = parents.get("/".join(parts[start:end]), ((), ()))
        if shape and len(shape) == len(leaf.shape):
          pairs = zip(shape, leaf.shape, values, strict=True)
          return tuple(value if size == own else default for size, own, value in pairs)
    return (default,) * len(leaf.shape)

  return map_named(find, tree)
