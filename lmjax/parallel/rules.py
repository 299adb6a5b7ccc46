"""The rule sets: which mesh axis carries which logical axis of parameters and activations, as data.

A rule is `(logical axis, mesh axis or axes)`. Read per array: the first dimension that wants a mesh axis gets it, and
an axis with no rule is replicated. Parameters are named by `utils.shapes.LEGEND`; activations are constrained by
`batch` and `length` (and by the same names as parameters inside attention and the MLP).
"""

Rules = tuple[tuple[str, tuple[str, ...]], ...]

BATCH = ("batch", ("data", "fsdp"))
MODEL = (("vocabulary", ("model",)), ("heads", ("model",)), ("groups", ("model",)), ("mlp", ("model",)))

RULES: dict[str, Rules] = {
  "ddp": (BATCH,),
  "fsdp": (BATCH, ("width", ("fsdp",))),
  "tp": (BATCH, *MODEL),
  "fsdp_tp": (BATCH, *MODEL, ("width", ("fsdp",))),
  "sequence": (BATCH, ("length", ("sequence",)), ("width", ("fsdp",))),
}
