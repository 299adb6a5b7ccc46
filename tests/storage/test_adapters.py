"""Adapters in PEFT's format: what is written opens with its base as the merged model, in every family."""

import json

import numpy as np
import pytest

from lmjax import storage
from lmjax.compression.lora import LoRA
from lmjax.storage.huggingface.adapter import CONFIG
from tests.storage.adapters import random_adapter
from tests.storage.huggingface_folders import SHAPES, write_model

KERNELS = LoRA("model/.*kernel$", 3, 6, {"value": 2, "mlp/up": 4}, {"out": 9.0}, train="^$")


def check(folder, expected):
  parameters = storage.open(folder).parameters()
  assert parameters.keys() == expected.keys()
  for name, array in expected.items():
    rows = parameters[name].rows
    np.testing.assert_allclose(np.asarray(parameters[name])[:rows], array[:rows], atol=1e-5, err_msg=name)


@pytest.mark.parametrize("kind", SHAPES)
def test_an_adapter_of_every_family_comes_back(kind, tmp_path):
  """Several kernels in one tensor, ranks and alphas by pattern, inputs first or outputs first."""
  write_model(tmp_path / "base", kind)
  lora = LoRA(KERNELS.targets, 3, 6, KERNELS.rank_pattern, KERNELS.alpha_pattern, train="^heads/|norm")
  check_folder = tmp_path / "adapter"
  check(check_folder, random_adapter(check_folder, tmp_path / "base", lora))
  config = json.loads((check_folder / CONFIG).read_text())
  assert config["fan_in_fan_out"] == kind.endswith("gpt") or kind == "gpt2"
  assert isinstance(config["target_modules"], list) and config["rank_pattern"] and config["alpha_pattern"]
