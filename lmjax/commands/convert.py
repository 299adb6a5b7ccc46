"""Models in and out of Hugging Face's format.

    lmjax convert --input runs/gpt2 --output my-gpt2                 a run folder as one that transformers opens
    lmjax convert --input path/to/hf --output copy                   and one that it wrote, read here and written again
    lmjax convert --check path/to/hf                                 logits here beside those of transformers

Every command takes such a folder where it takes a run. `hf:owner/name` is downloaded with huggingface_hub.
"""

import argparse
import importlib

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from lmjax import config as configs
from lmjax import experiment as experiments
from lmjax.logs import console
from lmjax.parallel.sharding import use_layout
from lmjax.storage import bilm, huggingface
from lmjax.storage.loading import task_of
from lmjax.tasks.encode import Encode
from lmjax.tasks.seq2seq import Seq2Seq
from lmjax.utils.errors import UserError


def main(arguments: list[str]) -> int:
  """Runs `lmjax convert`."""
  parser = argparse.ArgumentParser(
    prog="lmjax convert", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--input", help="a run folder, a folder of Hugging Face's, or hf:owner/name")
  parser.add_argument("--output", help="the folder to write, in Hugging Face's format")
  parser.add_argument("--step", type=int, help="of a run: the checkpoint, by its step; default the newest")
  parser.add_argument("--without_tokenizer", action="store_true", help="of a run: write the model alone")
  parser.add_argument("--check", metavar="DIR", help="compare a folder's logits with those of transformers")
  options = configs.parse(parser, arguments)
  if options.check:
    console.print(f"largest difference of logits: {check(options.check):.2e}", markup=False)
    return 0
  if not options.input or not options.output:
    raise UserError("convert: give --input and --output, or --check")
  convert(_fetch(options.input), options.output, options.step, not options.without_tokenizer)
  console.print(f"{options.output}: written; transformers opens it with from_pretrained", markup=False)
  return 0


def convert(
  source: epath.PathLike, output: epath.PathLike, step: int | None = None, with_tokenizer: bool = True
) -> None:
  """Writes a run, or a folder of Hugging Face's, as one of theirs; of a folder only a layer is in memory at a time.

  Raises:
    UserError: the source cannot be read, has no like among their families, or the output is not empty.
  """
  if huggingface.is_folder(source):
    loaded = huggingface.load(source)
    huggingface.save(output, loaded.model, loaded.params, settings=loaded.settings, files=source)
    return
  if bilm.is_folder(source):
    raise UserError(f"convert: {source} is an ELMo, which no family of theirs is; `embed` and `show` read it as it is")
  run = experiments.build(experiments.load_config(source) | {"mesh": {}}, source)
  with use_layout(run.layout):
    tokenizer = run.tokenizer if with_tokenizer else None
    huggingface.save(output, run.task.model, run.merged(source, step), tokenizer)


def check(folder: epath.PathLike, batch: int = 2, length: int = 16) -> float:
  """Returns the largest difference between the scores (or final vectors) here and in transformers, of random ids.

  Raises:
    UserError: transformers is not installed.
  """
  try:
    torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
  except ImportError as error:
    raise UserError("convert: --check needs transformers: pip install 'lmjax[parity]'") from error
  loaded = huggingface.load(folder)
  name = (loaded.settings.get("architectures") or [loaded.family.architecture(loaded.params["heads"])])[0]
  theirs = getattr(transformers, name).from_pretrained(str(folder)).eval()
  if hasattr(loaded.model, "read"):
    theirs.config.decoder_start_token_id = 0  # which newer folders keep elsewhere than in config.json
  task = task_of(loaded)
  ids = np.random.default_rng(0).integers(3, loaded.model.config.vocabulary, (batch, length))
  ids[:, -1] = theirs.config.eos_token_id if loaded.labels == "sequence" and hasattr(loaded.model, "read") else 3
  places, ones = np.broadcast_to(np.arange(length), ids.shape), np.ones(ids.shape, np.int32)
  given = dict(inputs=ids, positions=places, segments=ones, token_types=np.zeros(ids.shape, np.int32))
  shown = {"input_ids": torch.tensor(ids)}
  if isinstance(task, Seq2Seq):
    given |= dict(decoder_inputs=ids, decoder_positions=places, decoder_segments=ones)
    shown |= {"decoder_input_ids": torch.tensor(ids)}
  with torch.no_grad():
    out = theirs(**shown)
  found = task.forward(jax.tree.map(jnp.asarray, loaded.params), jax.tree.map(jnp.asarray, given))
  if loaded.labels == "span":
    ours, wanted = found.logits, torch.stack([out.start_logits, out.end_logits], -1)
  elif isinstance(task, Encode) and not task.head:
    ours, wanted = found.hidden, theirs.base_model(**shown).last_hidden_state
  else:
    ours, wanted = found.logits, out.prediction_logits if "prediction_logits" in out else out.logits
  return float(np.abs(np.asarray(ours) - wanted.detach().numpy()).max())


def _fetch(source: str) -> str:
  """Returns the local folder of a source, downloading `hf:owner/name`."""
  if not source.startswith("hf:"):
    return source
  try:
    from huggingface_hub import snapshot_download
  except ImportError as error:
    raise UserError("convert: hf: needs huggingface_hub: pip install huggingface_hub") from error
  try:
    return snapshot_download(source[3:], allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"])
  except Exception as error:  # it raises what its network library raises
    raise UserError(f"convert: {source} could not be downloaded: {str(error).splitlines()[0][:200]}") from error
