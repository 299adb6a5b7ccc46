"""Training with the mask of the weights that a run starts from: what is zero there stays zero."""

import dataclasses

from flax import traverse_util

from lmjax.compression.method import check_pattern
from lmjax.compression.prune import Masked
from lmjax.utils.pytree import Tree


@dataclasses.dataclass(frozen=True)
class KeepZeros(Masked):
  """Kernels whose zeros in `config.start` stay zero, as those of a pruned model do that is trained further.

  targets: a regular expression that is searched in the paths of kernels.

  Raises:
    UserError: no kernel matches `targets`.
  """

  targets: str = "^model/.*kernel$"

  def __post_init__(self):
    check_pattern(self.targets)

  def init(self, params: Tree) -> tuple[Tree, Tree, Tree]:
    kept = {name: box.value != 0 for name, box in self.kernels(params).items()}
    return params, {"masks": traverse_util.unflatten_dict(kept, sep="/")}, {}
