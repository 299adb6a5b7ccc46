"""StableHLO: a model with its weights as one program, which runs without lmjax and without Python's source of it.

model.stablehlo   what `jax.export.deserialize` reads: a function of token ids and a mask
signature.json    the names, shapes and types of its inputs and of its output
tokenizer/        of the model
"""

import json
from collections.abc import Callable

import jax
import jax.numpy as jnp
from etils import epath
from jax import export

from lmjax.parallel.sharding import use_layout
from lmjax.storage.base import LoadedModel, SavedModel
from lmjax.tasks.downstream import Downstream
from lmjax.tasks.encode import Encode
from lmjax.utils import files
from lmjax.utils.errors import UserError, one_line

PROGRAM, SIGNATURE = "model.stablehlo", "signature.json"
# Sizes of the inputs, and what is known of them; the first that the model's code allows.
SHAPES = (("batch, length", ("length >= 2",)), ("batch, {length}", ()), ("1, {length}", ()))


def save(
  folder: epath.PathLike, saved: SavedModel, with_tokenizer: bool = True, shape: tuple[int, int] | None = None
) -> None:
  """Writes a saved model as a program.

  Args:
    shape: of its inputs [batch, length], for compilers that need to know it; None leaves it open.

  Raises:
    UserError: the folder is there already, the model does not read tokens, or not so many.
  """
  target = epath.Path(folder).expanduser()
  if target.exists():
    raise UserError(f"convert: {folder} is there already; name another --output")
  loaded = saved.load(dtype="float32")
  program, names = to_program(loaded, shape)
  try:
    content = bytes(program.serialize())
  except ImportError as error:
    raise UserError("convert: programs are written with flatbuffers: pip install 'lmjax[export]'") from error
  shapes = {name: {"shape": list(map(str, aval.shape)), "dtype": str(aval.dtype)} for name, aval in
            zip((*names, "output"), (*program.in_avals, *program.out_avals), strict=True)}  # fmt: skip
  signature = {"inputs": {name: shapes[name] for name in names}, "output": shapes["output"]}
  signature |= {"output_is": "scores" if _has_scores(loaded) else "vectors", "platforms": list(program.platforms)}
  with files.new_folder(target) as part:
    files.write(part / PROGRAM, content)
    files.write(part / SIGNATURE, json.dumps(signature, indent=2) + "\n")
    if with_tokenizer:
      loaded.tokenizer.save(part / "tokenizer")


def to_program(loaded: LoadedModel, shape: tuple[int, int] | None = None) -> tuple[export.Exported, tuple[str, ...]]:
  """Returns a program of a model, and the names of its inputs: `inputs` and `mask`, whose zeros are padding.

  An encoder-decoder reads `decoder_inputs` too. The output is float32: the scores of tokens, or of the classes of a
  head; the final vectors of an encoder without a head. Without `shape`, batch and length stay open where the model's
  code allows it; else the length is the longest that the model takes.

  Raises:
    UserError: the model does not read tokens, or fewer than those of `shape`.
  """
  task = loaded.task
  if shape and shape[1] > loaded.length:
    raise UserError(f"convert: this model reads at most {loaded.length} tokens, not the {shape[1]} of --shape")
  if task.model.kind == "bidirectional_lm":
    raise UserError("convert: this model reads the characters of words, which a program of token ids cannot take")
  names = ("inputs", "mask") + ("decoder_inputs",) * (task.model.kind == "encoder_decoder" and not _own_decoder(loaded))

  def run(*arrays: jax.Array) -> jax.Array:
    given = dict(zip(names, arrays, strict=True))
    ids, segments = given["inputs"], given["mask"]
    batch = {"inputs": ids, "segments": segments, "token_types": jnp.zeros_like(ids)}
    batch["positions"] = jax.lax.broadcasted_iota(jnp.int32, ids.shape, 1)
    if "decoder_inputs" in given:
      target = given["decoder_inputs"]
      positions = jax.lax.broadcasted_iota(jnp.int32, target.shape, 1)
      batch |= {"decoder_inputs": target, "decoder_positions": positions, "decoder_segments": jnp.ones_like(target)}
    outputs = task.forward(loaded.params, batch)
    result = outputs.hidden if outputs.logits is None or not _has_scores(loaded) else outputs.logits
    return result.astype(jnp.float32)

  with use_layout(loaded.layout):
    return _export(run, len(names), loaded.length, shape), names


def _export(run: Callable[..., jax.Array], inputs: int, length: int, shape: tuple[int, int] | None) -> export.Exported:
  for sizes, constraints in [("{}, {}".format(*shape), ())] if shape else SHAPES:
    sizes = export.symbolic_shape(sizes.format(length=length), constraints=constraints)
    specs = [jax.ShapeDtypeStruct(sizes, jnp.int32)] * inputs
    try:
      return export.export(jax.jit(run))(*specs)
    except (TypeError, ValueError, NotImplementedError, jax.errors.InconclusiveDimensionOperation) as error:
      reason = one_line(str(error))
  raise UserError(f"convert: the model cannot be exported: {reason}")


def _own_decoder(loaded: LoadedModel) -> bool:
  """Whether the task makes what the decoder reads of the source."""
  return isinstance(loaded.task, Downstream | Encode)


def _has_scores(loaded: LoadedModel) -> bool:
  task = loaded.task
  if isinstance(task, Downstream):
    return bool(task.heads())  # of what compares vectors, the vectors are wanted
  return not isinstance(task, Encode) or task.classifier is not None
