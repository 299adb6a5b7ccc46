"""Batch keys: the legend describes the batches of every task, and fake batches follow from it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import config, experiment
from lmjax.data.batch import LEGEND, check, key_axes
from lmjax.data.objectives.seq2seq import PairRows
from lmjax.tasks.causal_lm import CausalLM
from lmjax.testing import fake_batch, tiny_decoder
from lmjax.utils.errors import UserError

CONFIGS = ("gpt2", "lstm", "bert", "t5:size=mini", "scan", "elmo", "glue", "ner", "squad")


def task_of(reference):
  name, _, variant = reference.partition(":")
  return experiment.build(config.load(f"configs/{name}.py:{variant},debug")).task


@pytest.mark.parametrize("reference", CONFIGS)
def test_the_legend_describes_the_spec_and_the_fake_batch_of_every_task(reference):
  task = task_of(reference)
  spec = task.spec(3, 24)
  axes, batch = key_axes(spec), fake_batch(task, 3, 24)
  check(batch, spec)
  sizes = {}
  for key, leaf in spec.items():
    assert len(axes[key]) == len(leaf.shape) and jnp.dtype(LEGEND[key].dtype) == leaf.dtype, key
    for letter, size in zip(axes[key], leaf.shape, strict=True):
      assert sizes.setdefault(letter, size) == size, f"{key}: an axis has one size"
    assert np.isfinite(batch[key]).all() and batch[key].shape == leaf.shape
  vocabulary = task.model.config.vocabulary
  assert all(batch[key].max() < vocabulary for key in spec if LEGEND[key].content.endswith("token"))


def test_fake_rows_are_two_packed_documents_and_padding():
  task = CausalLM(tiny_decoder())
  batch = fake_batch(task, 2, 16)
  assert batch["segments"].tolist() == [[1] * 10 + [2] * 5 + [0]] * 2
  assert batch["positions"][0, :15].tolist() == [*range(10), *range(5)]
  assert batch["weights"].tolist() == (batch["segments"] > 0).astype(float).tolist()
  assert np.array_equal(batch["inputs"][:, 1:], batch["targets"][:, :-1])
  assert not np.array_equal(batch["inputs"], fake_batch(task, 2, 16, seed=1)["inputs"])


def test_a_new_key_needs_a_row_of_the_legend_only(monkeypatch):
  class Rewarded(CausalLM):
    def spec(self, batch, length):
      return super().spec(batch, length) | {"old_tokens": jax.ShapeDtypeStruct((batch, length), jnp.int32)}

  monkeypatch.setitem(LEGEND, "old_tokens", dataclasses.replace(LEGEND["inputs"], meaning="sampled before"))
  batch = fake_batch(Rewarded(tiny_decoder()), 2, 16)
  assert np.array_equal(batch["old_tokens"], batch["inputs"])


def test_axes_depend_on_the_other_keys():
  assert key_axes(["inputs", "targets", "weights"])["weights"] == "BL"
  assert key_axes(["inputs", "decoder_inputs", "targets", "weights"])["weights"] == "BT"
  assert key_axes(["inputs", "masked_positions", "labels", "weights"]) == {
    "inputs": "BL", "masked_positions": "BP", "labels": "BP", "weights": "BP",
  }  # fmt: skip
  assert key_axes(["inputs", "labels", "unlisted"]) == {"inputs": "BL", "labels": "B"}
  assert set("".join(key.axes.replace(" ", "") for key in LEGEND.values())) <= set("BLTPC")


def test_a_batch_that_does_not_fit_the_spec_is_refused():
  task = CausalLM(tiny_decoder())
  batch, spec = fake_batch(task, 2, 16), task.spec(2, 16)
  with pytest.raises(UserError, match="needs batch key 'targets' \\(ids to predict\\)"):
    check({key: value for key, value in batch.items() if key != "targets"}, spec)
  with pytest.raises(UserError, match=r"'inputs' is float32\[2, 16\], the task takes int32\[2, 16\]"):
    check(batch | {"inputs": batch["inputs"].astype(jnp.float32)}, spec)


@pytest.mark.parametrize("packed", [True, False])
def test_pairs_are_placed_in_the_first_row_with_space_for_both_sides(packed):
  sizes = [(4, 2), (3, 3), (2, 6), (4, 1), (1, 1)]
  documents = [([np.full(m, i + 1), np.full(n, i + 1)], n) for i, (m, n) in enumerate(sizes)]
  packer, position, rows = PairRows((8, 6), 0, packed), (0, 0), []
  while True:
    row, position = packer.row(documents.__getitem__, position)
    if not row["weights"].any():
      break
    rows.append(list(dict.fromkeys(i for i in row["inputs"].tolist() if i)))
  assert rows == ([[1, 2, 5], [3], [4]] if packed else [[1], [2], [3], [4], [5]])


@pytest.mark.parametrize("reference", CONFIGS)
def test_debug_data_is_short_and_built_from_python_s_documentation(reference):
  name, _, variant = reference.partition(":")
  full, small = (config.load(f"configs/{name}.py:{variant}{end}")["data"] for end in ("", ",debug"))
  assert small["length"] == 32 and small["kind"] == full["kind"] and small["workers"] == 0
  for part in ("source", "validation"):
    kinds = {"scan": "PythonDocPairs", "glue": "PythonDocLabels", "ner": "PythonDocTags", "squad": "PythonDocQuestions"}
    assert small[part]["kind"].endswith(f":{kinds.get(name, 'PythonDocs')}")
  assert config.build(small, "data").debug(small) == small, "shrinking twice changes nothing"
