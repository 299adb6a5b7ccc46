"""Distillation: what is learned from a teacher, of every kind of task, and runs that do it."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from lmjax import config, experiment, sections, storage
from lmjax.__main__ import main
from lmjax.parallel.sharding import count_parameters
from lmjax.storage.run import RunFolder
from lmjax.tasks import divergences
from lmjax.tasks.base import Base, Frozen, FrozenModel, weighted_sum
from lmjax.tasks.causal_lm import CausalLM
from lmjax.tasks.classification import Classification
from lmjax.tasks.continued_lm import ContinuedLM
from lmjax.tasks.distill import Distill
from lmjax.tasks.ranking import Ranking
from lmjax.tasks.spans import SpanExtraction
from lmjax.tasks.tagging import Tagging
from lmjax.testing import fake_batch, init_params, tiny_decoder
from lmjax.utils.errors import UserError
from tests.families import tiny_task

ALL = dict(soft_weight=1.0, hidden_weight=1.0, attention_weight=1.0, values_weight=1.0)
FROM_TEACHER = ("soft", "hidden", "attention", "values")


def pair(task, teacher=None, **settings):
  """Returns a distilling task, its parameters, those of a teacher as the loss takes them, and a batch."""
  settings = ALL | settings
  distill = Distill(task.model, task, Frozen("teacher"), **settings)
  teacher = teacher or task
  batch = fake_batch(task)
  teacher_params = init_params(teacher, batch, seed=7)
  return distill, init_params(distill, batch), {"teacher": FrozenModel(teacher, teacher_params)}, batch


def noisy(params, seed=0):
  """Returns parameters that differ enough from new ones for losses to matter."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda p: p + 0.1 * rng.standard_normal(p.shape).astype(np.float32), params)


def terms_of(task, params, frozen, batch, rng=None):
  return jax.jit(lambda params, batch: task.loss(params, frozen, {}, batch, rng=rng)[0])(params, batch)


def downstream(cls, family, **changes):
  return cls(tiny_task(family).model, dropout=0.0, labels=("a", "b", "c"), **changes)


TASKS = {
  "GPT": lambda: tiny_task("GPT"),
  "BERT": lambda: tiny_task("BERT"),
  "T5": lambda: tiny_task("T5"),
  "classes": lambda: downstream(Classification, "BERT"),
  "classes and words": lambda: downstream(Classification, "GPT", lm_weight=0.5),
  "tags": lambda: downstream(Tagging, "GPT"),
  "spans": lambda: downstream(SpanExtraction, "BERT"),
  "choices": lambda: Ranking(tiny_task("BERT").model, dropout=0.0, labels=("0", "1")),
  "number": lambda: Classification(tiny_task("GPT").model, dropout=0.0),
  "classes of a source": lambda: downstream(Classification, "T5"),
}
FAST = ("classes",)
CASES = [name if name in FAST else pytest.param(name, marks=pytest.mark.long) for name in TASKS]


@pytest.mark.parametrize("name", CASES)
def test_a_student_that_equals_its_teacher_has_nothing_to_learn_from_it(name):
  """Terms and gradients of what comes from the teacher are 0; they are not for another student, and the task's own
  terms are those of the task."""
  task = TASKS[name]()
  distill, params, frozen, batch = pair(task, temperature=2.0)
  params = noisy(params)
  same = {"teacher": FrozenModel(task, params)}
  own = terms_of(task, params, {}, batch)

  @jax.jit
  def measured(params, frozen):
    def learned(params):
      terms, _ = distill.loss(params, frozen, {}, batch)
      return sum(terms[key].total / terms[key].count for key in FROM_TEACHER), terms

    (_, terms), grads = jax.value_and_grad(learned, has_aux=True)(params)
    return terms, jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(grads)))

  terms, norm = measured(params, same)
  other, other_norm = measured(params, frozen)
  for key, mean in own.items():
    np.testing.assert_allclose(terms["hard" if key == "loss" else key].value(), mean.value(), rtol=1e-5)
  assert all(abs(terms[key].value()) < 1e-5 and other[key].value() > 1e-4 for key in FROM_TEACHER), other
  assert norm < 1e-3 * other_norm


@pytest.mark.parametrize("name", CASES)
def test_terms_add_up_over_parts_of_a_batch(name):
  task = TASKS[name]()
  distill, params, frozen, batch = pair(task)
  counts = distill.counts(batch)
  assert counts.keys() == distill.terms.keys()
  whole = terms_of(distill, params, frozen, batch)
  parts = [terms_of(distill, params, frozen, {k: v[i : i + 2] for k, v in batch.items()}) for i in (0, 2)]
  for key in distill.terms:
    np.testing.assert_allclose(whole[key].count, counts[key])
    np.testing.assert_allclose(whole[key].total, sum(part[key].total for part in parts), rtol=1e-4, atol=1e-5)


def test_divergences_are_those_of_scipy():
  rng = np.random.default_rng(0)
  wanted, scores = rng.standard_normal((2, 3, 5)).astype(np.float32)
  for temperature in (1.0, 2.0):
    p, q = special.softmax(wanted / temperature, axis=-1), special.softmax(scores / temperature, axis=-1)
    expected = temperature**2 * stats.entropy(p, q, axis=-1)
    np.testing.assert_allclose(divergences.classes(wanted, scores, temperature), expected, rtol=1e-5)
  np.testing.assert_allclose(divergences.ATTENTION["kl"](q, p), stats.entropy(p, q, axis=-1), rtol=1e-5)
  cosine = 1 - np.sum(wanted * scores, -1) / np.linalg.norm(wanted, axis=-1) / np.linalg.norm(scores, axis=-1)
  np.testing.assert_allclose(divergences.HIDDEN["cosine"](scores, wanted), cosine, rtol=1e-5)
  np.testing.assert_allclose(divergences.HIDDEN["mse"](scores, wanted), np.mean((wanted - scores) ** 2, -1), rtol=1e-5)


def test_value_relations_are_those_of_numpy():
  """Of each head, among the tokens of a segment; the sizes of heads may differ."""
  rng = np.random.default_rng(0)
  x, wanted = rng.standard_normal((2, 2, 6, 3, 4)), rng.standard_normal((2, 2, 6, 3, 8))
  segments = np.array([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1]])
  got = divergences.relations(*(jnp.asarray(a, jnp.float32) for a in (x, wanted)), jnp.asarray(segments))
  for layer, row, token in np.ndindex(2, 2, 6):
    same = segments[row] == segments[row, token]
    rows = [[special.softmax(v[layer, row, same, g] @ v[layer, row, token, g] / v.shape[-1] ** 0.5) for g in range(3)]
            for v in (wanted, x)]  # fmt: skip
    expected = np.mean([stats.entropy(p, q) for p, q in zip(*rows, strict=True)])
    np.testing.assert_allclose(got[layer, row, token], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("distance", divergences.HIDDEN)
def test_distances_have_finite_gradients_at_zero(distance):
  gradient = jax.grad(lambda x: jnp.sum(divergences.HIDDEN[distance](x, jnp.ones((2, 4)))))(jnp.zeros((2, 4)))
  assert np.all(np.isfinite(gradient))


def test_the_temperature_keeps_the_size_of_the_gradient():
  """At high temperature, it is that of (centred scores - centred wanted)^2 / 2 V (Hinton et al., 2015, section 2.1)."""
  wanted, scores = np.random.default_rng(0).standard_normal((2, 7)).astype(np.float32)
  gradient = jax.grad(lambda s: divergences.classes(wanted, s, 200.0))(jnp.asarray(scores))
  expected = ((scores - scores.mean()) - (wanted - wanted.mean())) / 7
  np.testing.assert_allclose(gradient, expected, atol=3e-3)


def test_chunks_do_not_change_the_divergence():
  task = tiny_task("GPT")
  values = []
  for chunk in (0, 4):
    distill, params, frozen, batch = pair(task, chunk=chunk)

    def loss(params, distill=distill, frozen=frozen, batch=batch):
      return distill.loss(params, frozen, {}, batch)[0]["soft"].total

    values.append(jax.jit(jax.value_and_grad(loss))(params))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *values)


@pytest.mark.parametrize("name", ("GPT", "classes and words"))
def test_each_model_is_applied_once(name, monkeypatch):
  """And without taps, attention maps are not computed."""
  hidden, passes = Base.hidden, []

  def counted(self, params, batch, **options):
    passes.append((self.model, options["taps"]))
    return hidden(self, params, batch, **options)

  monkeypatch.setattr(Base, "hidden", counted)
  soft = dict(hidden_weight=0.0, attention_weight=0.0, values_weight=0.0)
  for settings, taps in ((ALL, ("hidden", "attention", "values")), (soft, ())):
    distill, params, frozen, batch = pair(TASKS[name](), **settings)
    passes.clear()
    jax.eval_shape(lambda d=distill, p=params, f=frozen, b=batch: d.loss(p, f, {}, b, rng=jax.random.key(0)))
    passes = [(model, taps) for model, taps in passes]
    assert len(passes) == 2 and all(asked == taps for _, asked in passes), passes


def test_layers_are_compared_by_the_map():
  """Only the layers that are named matter, and a teacher's layers may be compared in any order."""
  task = CausalLM(tiny_decoder(depth=2))
  teacher = CausalLM(tiny_decoder(depth=4))
  means = {}
  for layers in ((), (1, 3), (-1, 3), (0, 2)):
    distill, params, frozen, batch = pair(task, teacher, layer_map=layers, soft_weight=0.0, attention_weight=0.0)
    means[layers] = terms_of(distill, params, frozen, batch)["hidden"].value()
  assert means[()] == means[1, 3] != means[0, 2]
  distill, params, frozen, batch = pair(task, teacher, layer_map=(-1, 3))
  grad = jax.jit(jax.grad(lambda p: distill.loss(p, frozen, {}, batch)[0]["attention"].total))(params)
  assert np.any(grad["model"]["stack"]["layers"]["attention"]["query"]["kernel"][1])


@pytest.mark.long
def test_widths_may_differ_by_a_learned_projection():
  task, teacher = tiny_task("GPT"), CausalLM(tiny_decoder(width=48))
  distill, params, frozen, batch = pair(
    task, teacher, teacher_width=48, hidden_distance="mse", attention_distance="mse"
  )
  assert params["heads"]["projection"]["kernel"].shape == (32, 48) and set(distill.heads()) == {"projection"}
  plain = init_params(task, batch)
  jax.tree.map(np.testing.assert_array_equal, params["model"], plain["model"])
  grad = jax.jit(
    jax.grad(lambda p: weighted_sum(distill, distill.loss(p, frozen, {}, batch)[0], distill.counts(batch)))
  )
  assert np.any(grad(params)["heads"]["projection"]["kernel"])


@pytest.mark.parametrize(
  "changes, teacher, words",
  [
    (dict(), dict(vocabulary=60), "reads 60 tokens, and the student 50"),
    (dict(), dict(width=48), "width 32 are compared with those of width 48: set teacher_width=48"),
    (dict(hidden_weight=0.0), dict(heads=2, kv_heads=2), "4 heads are compared with 2"),
    (dict(layer_map=(0, 1)), {}, r"\[0, 1\] gives each of 3 layers"),
    (dict(layer_map=(0, 1, 3)), {}, r"gives each of 3 layers one of 3"),
    (dict(layer_map=(-1, -1, -1)), {}, r"gives each of 3 layers"),
  ],
)
def test_teachers_that_do_not_fit(changes, teacher, words):
  distill, params, frozen, batch = pair(tiny_task("GPT"), tiny_task("GPT", **teacher), **changes)
  with pytest.raises(UserError, match=words):
    jax.eval_shape(lambda: distill.loss(params, frozen, {}, batch))


def test_a_teacher_without_the_head_of_the_task_does_not_fit():
  task = downstream(Classification, "GPT")
  for teacher, words in (
    (CausalLM(task.model), "needs heads/sequence/scores/kernel of shape .32, 3., and teacher has none"),
    (dataclasses.replace(task, labels=("a", "b")), "and teacher has one of shape .32, 2."),
  ):
    distill, params, frozen, batch = pair(task, hidden_weight=0.0, attention_weight=0.0)
    frozen = {"teacher": FrozenModel(teacher, init_params(teacher, fake_batch(teacher)))}
    with pytest.raises(UserError, match=words):
      jax.eval_shape(lambda d=distill, p=params, f=frozen, b=batch: d.loss(p, f, {}, b))


def test_an_lstm_has_no_attention_maps():
  distill, params, frozen, batch = pair(tiny_task("LSTM"))
  with pytest.raises(UserError, match="have no attention to compare"):
    jax.eval_shape(lambda: distill.loss(params, frozen, {}, batch))


@pytest.mark.parametrize(
  "changes, words",
  [
    (dict(temperature=0), "temperature is above 0"),
    (dict(soft_weight=0.0), "one of soft, hidden, attention, values is above 0"),
    (dict(hidden_weight=-1.0), "hidden_weight must be at least 0"),
    (dict(hidden_distance="kl"), "hidden_distance is one of cosine, mse"),
    (dict(task=dict(kind="lmjax.tasks.causal_lm:CausalLM", model=3)), "task.task.model: no such key; another section"),
    (dict(task=dict(kind="lmjax.tasks.causal_lm:CausalLM", z_los=3)), "task.task.z_los: no such key; did you mean"),
    (dict(task=dict(z_loss=0.1)), "task.task.kind is missing"),
    (dict(task=dict(kind="lmjax.tasks.base:Base")), "is not what a config can name here"),
    (dict(teacher=dict(path="x", dtype="int8")), "dtype is float32 or bfloat16"),
  ],
)
def test_settings_are_checked(changes, words):
  spec = dict(
    kind="lmjax.tasks.distill:Distill", task=dict(kind="lmjax.tasks.causal_lm:CausalLM"), teacher=dict(path="x")
  )
  with pytest.raises(UserError, match=words):
    sections.build(spec | changes, "task", None, Base, model=tiny_decoder())


def test_tasks_with_a_state_of_their_own_have_no_teacher():
  task = ContinuedLM(tiny_task("LSTM").model, packed=False)
  with pytest.raises(ValueError, match="ContinuedLM keeps a state"):
    Distill(task.model, task, Frozen("x"))
  with pytest.raises(ValueError, match="Distill"):
    inner = Distill(tiny_decoder(), tiny_task("GPT"), Frozen("x"))
    Distill(inner.model, inner, Frozen("x"))


def test_distilbert_has_its_size():
  """Of BERT-base's parameters, without heads."""
  count = lambda run: count_parameters(run.named["model"])  # noqa: E731
  devices = jax.devices()[:1]
  student = experiment.build(config.load("configs/distilbert.py"), devices=devices)
  assert count(student) == 66_362_880
  settings = config.load("configs/bert.py:size=base")
  settings["data"]["tokenizer"]["size"] = 30522
  assert count(experiment.build(settings, devices=devices)) == 109_482_240
  assert student.task.terms == {"masked_lm": 2.0, "soft": 5.0, "hidden": 1.0}


# Runs.

DEBUG = ["--config", "configs/quickstart.py:debug", "--config.evals.every=0", "--config.model.depth=4"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
  folder = tmp_path_factory.mktemp("distill") / "teacher"
  assert main(["train", *DEBUG, "--config.steps=2", "--workdir", str(folder)]) == 0
  return folder


def distil(teacher, workdir, *options, steps=2):
  arguments = ["--config", f"configs/distill.py:teacher={teacher}", f"--config.steps={steps}", *options]
  return main(["train", *arguments, "--config.evals.every=0", "--workdir", str(workdir)])


def test_debug_leaves_a_student_the_size_that_its_teacher_gives_it(tmp_path):
  small = ["--config", "configs/quickstart.py:debug", "--config.evals.every=0", "--config.steps=1"]
  assert main(["train", *small, "--workdir", str(tmp_path / "teacher")]) == 0
  full, debug = (config.load(f"configs/distill.py:teacher={tmp_path / 'teacher'}{more}") for more in ("", ",debug"))
  assert debug["model"] == full["model"] and full["model"]["depth"] == 1 and debug["start"] == full["start"]


@pytest.mark.long
def test_a_student_starts_from_some_layers_and_is_used_without_its_teacher(teacher, tmp_path, monkeypatch):
  """Every command opens it as a model of the task, although the teacher is gone; training needs the teacher."""
  moved, student = tmp_path / "teacher", tmp_path / "student"
  shutil.copytree(teacher, moved)
  widths = ["--config.task.hidden_weight=1.0", "--config.task.teacher_width=48", "--config.optim.peak_lr=0.0"]
  assert distil(moved, student, *widths) == 2  # the teacher's width is 64
  shutil.rmtree(student)
  assert distil(moved, student, widths[0], widths[2], "--config.optim.weight_decay=0.0") == 0
  before, after = storage.open(moved).parameters(), storage.open(student).parameters()
  for name, array in before.items():
    stacked = "/layers/" in name
    np.testing.assert_array_equal(
      np.asarray(after[name]), np.asarray(array)[[0, 3]] if stacked else array, err_msg=name
    )
  shutil.rmtree(moved)
  assert type(storage.open(student).task) is CausalLM
  assert main(["generate", "--workdir", str(student), "--prompt", "The", "--max_new_tokens", "2"]) == 0
  assert main(["evaluate", "--workdir", str(student)]) == 0
  assert distil(moved, student, steps=3) == 2


@pytest.mark.long
def test_a_run_with_a_teacher_resumes_bit_for_bit(teacher, tmp_path):
  """And its evaluators measure what is learned from the teacher."""
  evaluated = ["--config.evals.validation.kind=lmjax.evals.validation_loss:ValidationLoss"]
  for name, steps in (("whole", (2,)), ("parts", (1, 2))):
    for step in steps:
      assert distil(teacher, tmp_path / name, "--config.task.attention_weight=1.0", *evaluated, steps=step) == 0
  one, other = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parts")
  for name in one.leaves:
    np.testing.assert_array_equal(one.read(name), other.read(name), err_msg=name)
  lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
  assert {"hard", "soft", "attention", "accuracy"} <= set(lines[0])
  assert {"validation_loss", "validation_soft", "validation_attention"} <= set(lines[-1])


@pytest.mark.long
def test_the_head_of_a_projection_is_not_exported(teacher, tmp_path):
  student = tmp_path / "student"
  options = [f"--config.model.{key}={value}" for key, value in dict(width=48, mlp=64).items()]
  options += ["--config.start={}", "--config.task.hidden_weight=1.0", "--config.task.teacher_width=64"]
  assert distil(teacher, student, *options) == 0
  assert "heads/projection/kernel" in str(storage.open(student).leaves)
  assert not any("projection" in name for name in RunFolder(student).named["heads"])
  small = tmp_path / "small"
  command = ["compress", "--workdir", str(student), "--output", str(small), "--quantize", "int8"]
  assert main([*command, "--measure", ""]) == 0
  assert type(storage.open(small).task) is CausalLM
  assert main(["generate", "--workdir", str(small), "--prompt", "The", "--max_new_tokens", "2"]) == 0
