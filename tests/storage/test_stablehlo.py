"""Models as programs, which another process runs without lmjax."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from lmjax import storage
from lmjax.__main__ import main
from lmjax.compression.quantize import Quantize
from lmjax.data.tokenizers.base import Bytes
from lmjax.inference.compress import compress
from lmjax.storage import huggingface
from lmjax.testing import fake_batch, init_params
from tests.families import tiny_task

pytest.importorskip("flatbuffers", reason="needs the [export] extra")

READER = """
import sys
import jax, numpy as np
from jax import export
program = export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
arrays = np.load(sys.argv[2])
np.save(sys.argv[3], np.asarray(program.call(*(arrays[name] for name in sys.argv[4:]))))
assert not any(name.split(".")[0] in ("lmjax", "flax") for name in sys.modules)
"""


def run_elsewhere(program, tmp_path, **arrays):
  """Returns what a program computes in a process that has neither lmjax nor flax."""
  np.savez(tmp_path / "in.npz", **arrays)
  paths = [str(program / "model.stablehlo"), str(tmp_path / "in.npz"), str(tmp_path / "out.npy")]
  done = subprocess.run([sys.executable, "-c", READER, *paths, *arrays], capture_output=True, text=True, cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  return np.load(tmp_path / "out.npy")


def folder_of(family, tmp_path, **changes):
  task = tiny_task(family, vocabulary=257, **changes)
  huggingface.save(tmp_path / "model", task.model, init_params(task, fake_batch(task)), Bytes())
  return tmp_path / "model"


def mask_of(ids):
  """Returns a mask whose last tokens are padding."""
  return (np.arange(ids.shape[1])[None] < ids.shape[1] - np.arange(len(ids))[:, None]).astype(np.int32)


@pytest.mark.parametrize("family", ["GPT", *(pytest.param(f, marks=pytest.mark.long) for f in ("Llama", "BERT", "T5"))])
def test_another_process_computes_the_same(family, tmp_path):
  folder, output = folder_of(family, tmp_path), tmp_path / "program"
  assert main(["convert", "--input", str(folder), "--output", str(output), "--format", "stablehlo"]) == 0
  signature = json.loads((output / "signature.json").read_text())
  loaded = storage.open(folder).load()
  ids = np.random.default_rng(0).integers(0, 257, (3, 11)).astype(np.int32)
  arrays = {"inputs": ids, "mask": mask_of(ids)}
  batch = {"inputs": ids, "segments": arrays["mask"], "token_types": np.zeros_like(ids)}
  if family == "T5":
    arrays["decoder_inputs"] = ids[:, ::-1].copy()
    batch |= {"decoder_inputs": arrays["decoder_inputs"], "decoder_segments": np.ones_like(ids)}
  assert list(signature["inputs"]) == list(arrays) and signature["inputs"]["inputs"]["shape"] == ["batch", "length"]
  expected = jax.jit(lambda params, batch: loaded.task.forward(params, batch).logits)(loaded.params, batch)
  real = arrays["mask"] > 0 if family != "T5" else np.ones_like(ids, bool)
  computed = run_elsewhere(output, tmp_path, **arrays)
  np.testing.assert_allclose(computed[real], np.asarray(expected)[real], atol=2e-5)


@pytest.mark.long
def test_a_quantized_model_stays_quantized(tmp_path):
  """Its program has the integers, not floats."""
  folder = folder_of("GPT", tmp_path)
  compress(storage.open(folder), tmp_path / "small", [Quantize()])
  sizes = {}
  for name in ("model", "small"):
    assert (
      main(
        ["convert", "--input", str(tmp_path / name), "--output", str(tmp_path / f"{name}.p"), "--format", "stablehlo"]
      )
      == 0
    )
    sizes[name] = (tmp_path / f"{name}.p" / "model.stablehlo").stat().st_size
  assert sizes["small"] < 0.6 * sizes["model"]
  loaded = storage.open(tmp_path / "small").load()
  ids = np.random.default_rng(0).integers(0, 257, (1, 7)).astype(np.int32)
  expected = loaded.task.forward(loaded.params, {"inputs": ids, "segments": np.ones_like(ids)}).logits
  computed = run_elsewhere(tmp_path / "small.p", tmp_path, inputs=ids, mask=np.ones_like(ids))
  np.testing.assert_allclose(computed, expected, atol=2e-5)


def test_what_cannot_be_written(tmp_path, capsys):
  folder = folder_of("GPT", tmp_path)
  assert main(["convert", "--input", str(folder), "--output", str(folder), "--format", "stablehlo"]) == 2
  assert "is there already" in capsys.readouterr().err
  assert main(["convert", "--input", str(folder), "--output", str(tmp_path / "x.gguf"), "--format", "stablehlo"]) == 2


@pytest.mark.parametrize(
  "shape, form, expected",
  [
    ("1x99", "stablehlo", "reads at most 16 tokens, not the 99"),
    ("0x4", "stablehlo", "'0x4' is not a shape such as 1x128"),
    ("128", "stablehlo", "'128' is not a shape"),
    ("1x8", "huggingface", "no effect without --format stablehlo"),
  ],
)
def test_shapes_that_cannot_be(shape, form, expected, tmp_path, capsys):
  folder, output = folder_of("GPT", tmp_path), tmp_path / "program"
  command = ["convert", "--input", str(folder), "--output", str(output), "--format", form, "--shape", shape]
  try:
    assert main(command) == 2
  except SystemExit as stopped:  # by argparse
    assert stopped.code == 2
  assert expected in capsys.readouterr().err and not output.exists()


def test_a_shape_is_fixed(tmp_path):
  folder, output = folder_of("GPT", tmp_path), tmp_path / "program"
  command = ["convert", "--input", str(folder), "--output", str(output), "--format", "stablehlo"]
  assert main([*command, "--shape", "2x8"]) == 0
  signature = json.loads((output / "signature.json").read_text())
  assert signature["inputs"]["mask"]["shape"] == ["2", "8"] and signature["output"]["shape"] == ["2", "8", "257"]
