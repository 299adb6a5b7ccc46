"""The values that lmjax and transformers compute from one Hugging Face folder."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from lmjax.storage import huggingface
from lmjax.storage.huggingface.families import note
from lmjax.storage.huggingface.folder import class_of, task_of
from lmjax.tasks.encode import Encode
from lmjax.tasks.seq2seq import Seq2Seq
from lmjax.utils.errors import UserError, reason
from lmjax.utils.files import find


def check(folder: epath.PathLike, batch: int = 2, length: int = 16) -> tuple[float, float]:
  """Compares the logits (or final vectors) of lmjax and transformers for random ids.

  Returns:
    The largest difference, and the largest absolute value that transformers computes.

  Raises:
    UserError: transformers is not installed.
  """
  try:
    torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
  except ImportError as error:
    raise UserError("convert: --check needs transformers: pip install 'lmjax[parity]'") from error
  folder = find(folder)
  loaded = huggingface.load(folder)
  task = task_of(loaded)
  compares_vectors = isinstance(task, Encode) and not task.classifier
  try:
    model_class = getattr(transformers, class_of(loaded))
    hf_model, info = model_class.from_pretrained(
      str(folder), dtype=torch.float32, output_loading_info=True, attn_implementation="eager"
    )  # eager: no kernel that a config names
  except Exception as error:  # of many types
    raise UserError(f"convert: transformers cannot open {folder}: {reason(error)}") from error
  if info["missing_keys"] and not compares_vectors:
    note(f"transformers initialises {', '.join(sorted(info['missing_keys'])[:4])}, which {folder} does not have for it")
  hf_model.eval()
  vocabulary, length = loaded.model.config.vocabulary, min(length, loaded.model.config.length)
  pad, end = hf_model.config.pad_token_id, getattr(hf_model.config, "eos_token_id", None)
  words = [i for i in range(min(3, vocabulary - 1), vocabulary) if i not in (pad, end)] or [0]
  ids = np.random.default_rng(0).choice(words, (batch, length))
  if loaded.model.kind == "encoder_decoder":
    # newer folders keep it outside of config.json
    hf_model.config.decoder_start_token_id = task.start if isinstance(task, Encode) else 0
    ids[:, -1] = end if loaded.labels == "sequence" and isinstance(end, int) else ids[:, -1]
  positions, ones = np.broadcast_to(np.arange(length), ids.shape), np.ones(ids.shape, np.int32)
  inputs = dict(inputs=ids, positions=positions, segments=ones, token_types=np.zeros(ids.shape, np.int32))
  hf_inputs = {"input_ids": torch.tensor(ids[:, None] if loaded.labels == "choice" else ids)}
  if isinstance(task, Seq2Seq):
    inputs |= dict(decoder_inputs=ids, decoder_positions=positions, decoder_segments=ones)
    hf_inputs |= {"decoder_input_ids": torch.tensor(ids)}
  if loaded.model.kind == "decoder":
    hf_model.config.pad_token_id = -1  # a classifier takes the last token
  try:
    with torch.no_grad():
      hf_outputs = (hf_model.base_model if compares_vectors else hf_model)(**hf_inputs)
  except Exception as error:  # of many types
    raise UserError(f"convert: transformers cannot compute {folder}: {reason(error)}") from error
  outputs = task.forward(jax.tree.map(jnp.asarray, loaded.params), jax.tree.map(jnp.asarray, inputs))
  if loaded.labels == "span":
    values, expected = outputs.logits, torch.stack([hf_outputs.start_logits, hf_outputs.end_logits], -1)
  elif compares_vectors:
    values, expected = outputs.hidden, hf_outputs.last_hidden_state
  else:
    key = "prediction_logits" if "prediction_logits" in hf_outputs else "logits"
    values, expected = outputs.logits, hf_outputs[key]
  expected = expected.detach().numpy()
  return float(np.abs(np.asarray(values) - expected).max()), float(np.abs(expected).max())
