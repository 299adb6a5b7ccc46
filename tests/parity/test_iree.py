"""A program of a fixed shape is compiled by IREE: for a phone, and for this machine, where it computes the same."""

import numpy as np
import pytest

from lmjax.__main__ import main
from tests.storage.test_stablehlo import folder_of

export = pytest.importorskip("jax.export")
compiler = pytest.importorskip("iree.compiler")
runtime = pytest.importorskip("iree.runtime")
pytestmark = pytest.mark.torch


@pytest.mark.parametrize("family", ["GPT", "BERT", "T5"])
def test_a_program_for_a_phone(family, tmp_path):
  folder, output = folder_of(family, tmp_path), tmp_path / "program"
  command = ["convert", "--input", str(folder), "--output", str(output), "--format", "stablehlo", "--shape", "1x12"]
  assert main(command) == 0
  program = export.deserialize(bytearray((output / "model.stablehlo").read_bytes()))
  options = ["--iree-hal-target-device=local", "--iree-hal-local-target-device-backends=llvm-cpu"]
  built = {
    target: compiler.compile_str(program.mlir_module_serialized, input_type="stablehlo", extra_args=[*options, *more])
    for target, more in {
      "phone": ["--iree-llvmcpu-target-triple=aarch64-linux-android29"],
      "here": ["--iree-llvmcpu-target-cpu=host"],
    }.items()
  }
  assert all(len(content) > 10_000 for content in built.values())
  rng = np.random.default_rng(0)
  arrays = [rng.integers(0, 257, (1, 12)).astype(np.int32), (np.arange(12)[None] < 9).astype(np.int32)]
  arrays += [arrays[0][:, ::-1].copy()] * (len(program.in_avals) - 2)
  config = runtime.Config("local-task")
  module = runtime.load_vm_module(runtime.VmModule.copy_buffer(config.vm_instance, built["here"]), config)
  got, want = np.asarray(module.main(*arrays)), np.asarray(program.call(*arrays))
  np.testing.assert_allclose(got[:, :9], want[:, :9], atol=2e-5)
