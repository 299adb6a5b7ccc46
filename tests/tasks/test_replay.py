"""Cached predictions of a teacher: with all words they are the teacher's, and rows that it has not read are refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from lmjax import storage
from lmjax.__main__ import main
from lmjax.data import cached_scores
from lmjax.data.cached_scores import Cached, Writer
from lmjax.logs import read_metrics
from lmjax.tasks.base import Frozen, FrozenModel
from lmjax.tasks.classification import Classification
from lmjax.tasks.distill import Distill
from lmjax.tasks.replay import IDS, LOG_PROBS, Replay, divergence, predictions
from lmjax.tasks.tagging import Tagging
from lmjax.testing import fake_batch, init_params
from lmjax.utils.errors import UserError
from tests.families import tiny_task

LABELS = dict(dropout=0.0, labels=("a", "b", "c"))
TASKS = {
  "classes": lambda: Classification(tiny_task("BERT").model, **LABELS),
  "words": lambda: tiny_task("GPT"),
  "masked words": lambda: tiny_task("BERT"),
  "words of a decoder": lambda: tiny_task("T5"),
  "tags": lambda: Tagging(tiny_task("GPT").model, **LABELS),
}
CASES = [name if name == "words" else pytest.param(name, marks=pytest.mark.slow) for name in TASKS]


@pytest.mark.parametrize("name", CASES)
def test_all_words_of_a_teacher_are_as_good_as_the_teacher(name):
  """Terms and gradients."""
  task = TASKS[name]()
  top = 3 if hasattr(task, "labels") else 50
  distill = Distill(task.model, task, Frozen("teacher"), temperature=2.0, soft_weight=3.0)
  replay = Replay(task.model, task, Frozen("teacher"), temperature=2.0, soft_weight=3.0, scores="x", top=top)
  batch = fake_batch(task)
  params, teacher = init_params(task, batch), FrozenModel(task, init_params(task, batch, seed=7))

  @jax.jit
  def measured(params, teacher):
    ids, log_probs = predictions(distill, teacher, batch, top)

    def of(distilling, batch):
      def loss(params):
        terms, _ = distilling.loss(params, {"teacher": teacher}, {}, batch)
        return sum(distilling.terms[key] * terms[key].total for key in distilling.terms), terms

      return jax.value_and_grad(loss, has_aux=True)(params)

    evaluated = replay.loss(params, {}, {}, batch)[0]  # rows that the teacher has not read
    return of(distill, batch), of(replay, batch | {IDS: ids, LOG_PROBS: log_probs}), evaluated, (ids, log_probs)

  online, offline, evaluated, cached = measured(params, teacher)
  spec = replay.spec(4, 16)
  assert [array.shape for array in cached] == [spec[IDS].shape, spec[LOG_PROBS].shape]
  assert online[0][1]["soft"].value() > 1e-4 and evaluated["soft"].value() == 0.0
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), offline, online)
  for key in evaluated.keys() - {"soft"}:
    np.testing.assert_allclose(evaluated[key].value(), online[0][1][key].value(), rtol=1e-5)


def test_the_divergence_is_that_of_the_kept_words_and_all_others():
  rng = np.random.default_rng(0)
  wanted, scores = 3 * rng.standard_normal((2, 5, 20))
  p, q = (np.exp(log_softmax(x / 2.0, axis=-1)) for x in (wanted, scores))
  before = 0.0
  for top in (1, 4, 20):
    ids = np.argsort(-p, axis=-1)[:, :top]
    kept, own = (np.take_along_axis(x, ids, axis=-1) for x in (p, q))
    outcomes = [np.concatenate([x, 1 - x.sum(-1, keepdims=True)], axis=-1)[:, : min(top + 1, 20)] for x in (kept, own)]
    expected = 4.0 * np.sum(outcomes[0] * np.log(outcomes[0] / outcomes[1]), axis=-1)
    made = divergence(jnp.asarray(scores), jnp.asarray(ids), jnp.log(kept), 2.0)
    np.testing.assert_allclose(made, expected, rtol=1e-4, atol=1e-5)
    assert np.all(np.asarray(made) >= before - 1e-5)  # more words say more
    before = np.asarray(made)


def batches(count, length=3):
  rng = np.random.default_rng(0)
  for _ in range(count):
    yield (
      {"inputs": rng.integers(0, 9, (2, length)).astype(np.int32)},
      rng.integers(0, 9, (2, length, 4)),
      (-rng.random((2, length, 4)).astype(np.float32)),
    )


ABOUT = dict(keys=["inputs"], top=4, temperature=1.0, classes=9, teacher="runs/teacher")


def test_a_folder_that_is_continued_is_that_of_one_command(tmp_path, monkeypatch):
  """Also after a kill in the middle of a part; rows are found in any order."""
  monkeypatch.setattr(cached_scores, "PART", 2)
  whole, parts = Writer(tmp_path / "whole", ABOUT), Writer(tmp_path / "parts", ABOUT)
  for batch in batches(5):
    whole.add(*batch)
  whole.flush()
  for number, batch in enumerate(batches(3)):
    parts.add(*batch)
    assert number < 2 or parts.done == 2  # the third is not written
  again = Writer(tmp_path / "parts", ABOUT)
  for number, batch in enumerate(batches(5)):
    if number >= again.done:
      again.add(*batch)
  again.flush()
  for file in sorted((tmp_path / "whole").iterdir()):
    assert file.read_bytes() == (tmp_path / "parts" / file.name).read_bytes()
  cached, rows = Cached(tmp_path / "parts"), list(batches(5))
  for batch, ids, log_probs in rows[::-1]:
    swapped = {"inputs": batch["inputs"][::-1]}
    np.testing.assert_array_equal(cached.rows(swapped)[0], ids[::-1])
    np.testing.assert_array_equal(cached.rows(swapped)[1], log_probs[::-1])
  with pytest.raises(UserError, match="temperature 1.0, not 2.0; choose another --output"):
    Writer(tmp_path / "parts", ABOUT | {"temperature": 2.0})


def test_what_does_not_belong_together_is_refused_in_a_line(tmp_path):
  writer = Writer(tmp_path / "scores", ABOUT)
  (batch, ids, log_probs), *_ = batches(1)
  writer.add(batch, ids, log_probs)
  writer.flush()
  cached = Cached(tmp_path / "scores")
  for other in ({"inputs": batch["inputs"] + 1}, {"inputs": batch["inputs"][:, :2]}, {"targets": batch["inputs"]}):
    with pytest.raises(UserError, match="does not have row 0 of a batch among the 2 that the teacher has read"):
      cached.rows(other)
  with pytest.raises(UserError, match=r"no index\.json: it is not a folder of cached scores"):
    Cached(tmp_path / "nothing").rows(batch)
  task = tiny_task("GPT")
  replay = Replay(task.model, task, Frozen("teacher"), scores=str(tmp_path / "scores"), top=4, temperature=2.0)
  with pytest.raises(UserError, match="temperature is 2.0, and .* was written with 1.0"):
    next(iter(replay.collect({}, {}, {}, batch, jax.random.key(0))))
  for changes in (dict(top=0), dict(scores=""), dict(hidden_weight=1.0)):
    with pytest.raises(ValueError):
      dataclasses.replace(replay, **changes)
  file = tmp_path / "scores" / "00000.npy"
  data = np.load(file)
  data["ids"][0] = 9
  np.save(file, data)
  with pytest.raises(UserError, match="is corrupt: a row has ids"):
    Cached(tmp_path / "scores").rows(batch)
  file.write_bytes(file.read_bytes()[:-50])
  with pytest.raises(UserError, match="is corrupt"):
    Cached(tmp_path / "scores").rows(batch)


@pytest.mark.long
def test_a_run_from_the_disk_is_that_of_the_teacher(tmp_path, capsys):
  """Also one that is interrupted; data in another order are refused."""
  debug = ["--config", "configs/lottery.py:debug", "--config.steps=4", "--config.evals.every=2"]
  assert main(["train", *debug, "--workdir", str(tmp_path / "teacher"), "--config.optim.peak_lr=0.1"]) == 0
  config = ["--config", f"configs/distill.py:teacher={tmp_path / 'teacher'}"]
  config += ["--config.optim.schedule=constant", "--config.optim.warmup=0", "--config.optim.peak_lr=0.001"]
  scores = str(tmp_path / "scores")
  assert main(["teacher", *config, "--output", scores, "--top", "1000"]) == 0
  classes = Cached(scores).settings["top"]  # all of them
  replay = [f"--config.task.{key}={value}" for key, value in dict(scores=scores, top=classes).items()]
  replay += ["--config.task.kind=lmjax.tasks.replay:Replay"]
  assert main(["train", *config, "--workdir", str(tmp_path / "online")]) == 0
  for steps in (3, 4):
    assert main(["train", *config, *replay, "--workdir", str(tmp_path / "offline"), f"--config.steps={steps}"]) == 0
  online, offline = (storage.open(tmp_path / name).parameters() for name in ("online", "offline"))
  for name, array in online.items():
    np.testing.assert_allclose(np.asarray(offline[name]), np.asarray(array), atol=2e-4, err_msg=name)
  soft = [[line["soft"] for line in read_metrics(tmp_path / name) if "soft" in line] for name in ("online", "offline")]
  np.testing.assert_allclose(*soft, rtol=1e-3)
  capsys.readouterr()
  assert main(["train", *config, *replay, "--workdir", str(tmp_path / "other"), "--config.seed=1"]) == 2
  error = capsys.readouterr().err.strip()
  assert "does not have row 0 of a batch" in error and "\n" not in error
