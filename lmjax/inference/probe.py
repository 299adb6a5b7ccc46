"""Linear probes of a model's representations (Tenney et al., 2019, arXiv:1905.06316)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy import optimize

from lmjax.models.heads import scalar_mix
from lmjax.utils.pytree import Tree


@dataclasses.dataclass(frozen=True)
class Probe:
  """A scalar mix of layers and a linear classifier on it, fitted to all data at once by L-BFGS.

    loss = mean cross-entropy + decay / 2 |kernel|^2

  classes: number of labels. decay: L2 penalty. steps: maximum iterations. With a single layer, the mix only scales it.
  """

  classes: int
  decay: float = 1e-4
  steps: int = 200

  def fit(self, layers_NxTxD: np.ndarray, labels_T: np.ndarray) -> Tree:
    """Returns parameters fitted to vectors of T tokens: weights [N], gamma [], kernel [D, classes], bias [classes]."""
    count, _, width = layers_NxTxD.shape
    start = dict(weights=(count,), gamma=(), kernel=(width, self.classes), bias=(self.classes,))
    start = {key: np.zeros(shape) for key, shape in start.items()} | {"gamma": np.ones(())}
    flat, unflatten = ravel_pytree(jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), start))
    x, labels = jnp.asarray(layers_NxTxD, jnp.float32), jnp.asarray(labels_T)

    @jax.jit
    @jax.value_and_grad
    def loss(flat):
      params = unflatten(flat)
      logs = jax.nn.log_softmax(scores(params, x))
      return -jnp.mean(jnp.take_along_axis(logs, labels[:, None], 1)) + self.decay / 2 * jnp.sum(params["kernel"] ** 2)

    def value_and_gradient(flat):
      value, gradient = loss(jnp.asarray(flat, jnp.float32))
      return float(value), np.asarray(gradient, np.float64)

    options = {"maxiter": self.steps}
    result = optimize.minimize(value_and_gradient, np.asarray(flat), jac=True, method="L-BFGS-B", options=options)
    return unflatten(jnp.asarray(result.x, jnp.float32))


def scores(params: Tree, layers_NxTxD: jax.Array) -> jax.Array:
  """Returns the logits of the classes [T, classes]."""
  return scalar_mix(layers_NxTxD, params["weights"], params["gamma"]) @ params["kernel"] + params["bias"][None]


def token_f1(predicted: np.ndarray, labels: np.ndarray, outside: int = 0) -> float:
  """Returns F1 over single tokens, 2 precision recall / (precision + recall), of all classes but `outside`."""
  true_positives = ((predicted == labels) & (labels != outside)).sum()
  num_predicted, num_labels = (predicted != outside).sum(), (labels != outside).sum()
  return float(2 * true_positives / max(num_predicted + num_labels, 1))
