"""The shape legend: one letter an axis, used in names (`q_BxLxHxK`), einsum equations and sharding rules."""

LEGEND = {
  "B": "batch",
  "L": "length",
  "M": "source",  # length of what is attended to: the encoder's text, or the cache
  "D": "width",
  "H": "heads",
  "G": "kv_heads",  # key/value heads
  "K": "head",  # head size
  "F": "mlp",
  "E": "output",  # of a head: a width that no rule splits
  "Q": "gates",  # the four of an LSTM cell
  "V": "vocabulary",
  "N": "layers",
  "P": "positions",  # rows of a table of learned positions
  "S": "samples",
  "C": "characters",
}
