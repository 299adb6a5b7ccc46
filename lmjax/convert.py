"""Models in and out of Hugging Face's format.

    lmjax convert --input runs/gpt2 --output my-gpt2                 a run folder as one that transformers opens
    lmjax convert --input path/to/hf --output copy                   and one that it wrote, read here and written again
    lmjax convert --check path/to/hf                                 logits here beside those of transformers

Every command takes such a folder where it takes a run. `hf:owner/name` is downloaded with huggingface_hub.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from lmjax import config as configs
from lmjax.interop import huggingface
from lmjax.logs import console
from lmjax.opening import open_model
from lmjax.parallel.sharding import use_layout
from lmjax.utils.errors import UserError


def main(arguments: list[str]) -> int:
  """Runs `lmjax convert`."""
  parser = argparse.ArgumentParser(
    prog="lmjax convert", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--input", help="a run folder, a folder of Hugging Face's, or hf:owner/name")
  parser.add_argument("--output", help="the folder to write, in Hugging Face's format")
  parser.add_argument("--step", type=int, help="of a run: the checkpoint, by its step; default the newest")
  parser.add_argument("--check", metavar="DIR", help="compare a folder's logits with those of transformers")
  options = configs.parse(parser, arguments)
  if options.check:
    console.print(f"largest difference of logits: {check(options.check):.2e}", markup=False)
    return 0
  if not options.input or not options.output:
    raise UserError("convert: give --input and --output, or --check")
  source = _fetch(options.input)
  if huggingface.is_folder(source):
    loaded = huggingface.load(source)
    huggingface.save(options.output, loaded.model, loaded.params, settings=loaded.settings, files=source)
  else:
    opened = open_model(source, options.step)
    with use_layout(opened.layout):
      params = opened.params
      if opened.run is not None:
        params = opened.run.transform.merge(params, {}, {})
      huggingface.save(options.output, opened.task.model, params, opened.tokenizer)
  console.print(f"{options.output}: written; transformers opens it with from_pretrained", markup=False)
  return 0


def check(folder: epath.PathLike, batch: int = 2, length: int = 16) -> float:
  """Returns the largest difference between the logits (or final vectors) here and in transformers, of random ids.

  Raises:
    UserError: transformers is not installed.
  """
  try:
    import importlib

    torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
  except ImportError as error:
    raise UserError("convert: --check needs transformers: pip install 'lmjax[parity]'") from error
  loaded = huggingface.load(folder)
  kind = loaded.settings.get("architectures") or [huggingface.read_config(folder)[1].architecture]
  theirs = getattr(transformers, kind[0]).from_pretrained(str(folder)).eval()
  ids = np.random.default_rng(0).integers(3, loaded.model.config.vocabulary, (batch, length))
  params = jax.tree.map(jnp.asarray, loaded.params)
  given = {"decoder_input_ids": torch.tensor(ids)} if hasattr(loaded.model, "read") else {}
  with torch.no_grad():
    out = theirs(input_ids=torch.tensor(ids), **given)
  model, ours = loaded.model, jnp.asarray(ids)
  apply = lambda *a, **k: model.apply({"params": params["model"]}, *a, **k)  # noqa: E731
  if hasattr(model, "extend"):
    hidden = apply(ours, ours)[0] if hasattr(model, "read") else apply(ours)[0]
    found, wanted = apply(hidden, method="logits"), out.logits
  else:
    found, wanted = apply(ours)[0], theirs.base_model(input_ids=torch.tensor(ids)).last_hidden_state
  return float(np.abs(np.asarray(found) - wanted.detach().numpy()).max())


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
