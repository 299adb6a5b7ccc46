"""The shape legend: one letter per axis, used in names (`q_BxLxHxK`), einsum equations and sharding rules."""

LEGEND = {
  "B": "batch",
  "L": "length",
  "M": "source",  # length of the keys: the encoder input, or the cache
  "D": "width",
  "H": "heads",
  "G": "kv_heads",  # key/value heads
  "K": "head",  # size of a head
  "F": "mlp",
  "X": "experts",
  "E": "output",  # output width of a head on top of the model; never sharded
  "Q": "gates",  # the four gates of an LSTM cell
  "V": "vocabulary",
  "N": "layers",
  "P": "positions",  # rows of a learned position table
  "S": "samples",
  "C": "characters",
}
