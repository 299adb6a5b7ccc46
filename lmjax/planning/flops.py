"""FLOPs by counting."""

FORMULA = "6 x parameters in products x tokens + 6 x depth x heads x head_size x length x tokens (causal attention)"


def train_step_flops(config, parameters: int, tokens: int, length: int) -> float:
  """Returns the FLOPs of a training step on `tokens` tokens in rows of `length`, nothing recomputed.

  Every weight that takes part in a product costs 2 FLOPs a token forwards and 4 backwards; attention over on average
  L / 2 tokens costs 2 x 2 x heads x head_size x L / 2 a layer forwards and twice that backwards (Chowdhery et al.,
  2022, arXiv:2204.02311, appendix B, halved for causality). Tables that are only looked up cost nothing.
  """
  looked_up = config.width * config.length if config.rotary is None else 0
  looked_up += 0 if config.tied else config.width * config.vocabulary
  attention = 6 * config.depth * config.heads * config.head_size * length
  return tokens * (6.0 * (parameters - looked_up) + attention)
