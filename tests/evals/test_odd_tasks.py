"""Task files with fields of any value: evaluated, or refused in one line before the model works."""

import dataclasses
import json
import pathlib
import random

import jax
import numpy as np
import pytest

from lmjax.__main__ import main
from lmjax.evals.suites.task_checks import METADATA
from lmjax.evals.suites.task_files import GENERATION, METRICS, OUTPUT_TYPES, TaskFile
from lmjax.inference import scoring
from lmjax.inference import suite as suites
from lmjax.utils.errors import UserError
from tests.evals.test_suites import DOCS, TASK, loaded, write  # noqa: F401

VALUES = (
  None, 0, 7, -1, 1.5, True, "", "x", "question", "{{question", "{{nothing}}", "{{'x' * 10**10}}", "{{10 ** 10 ** 9}}",
  "a/b", "../x", ".", "results", "[", "\ud800", "\0", [], ["x"], [1], {}, {"a": 1}, {"a": "("}, {"test": []},
  {"field": "question", "first": 1, "second": [2]}, {"test": 5}, [{"metric": "acc"}], [{"metric": []}], [{}],
  [{"metric": "exact_match", "regexes_to_ignore": ["("]}], "*.jsonl", "y" * 300,
)  # fmt: skip


@pytest.fixture
def quick(monkeypatch):
  """Models that score and answer at once."""

  def scores(loaded, requests, rolling=False, stride=0, name=str):  # noqa: F811
    for number, pairs in enumerate(requests):
      yield [scoring.Score(number, np.array([-1.0 - len(b) for _, b in pairs]), np.ones(len(pairs), bool))]

  monkeypatch.setattr(scoring, "scores", scores)
  monkeypatch.setattr(scoring, "answers", lambda _, prompts, *__: [(i, "7") for i in range(len(prompts))])


def tried(loaded, file, folder, **options):  # noqa: F811
  """Returns whether a suite could be evaluated; otherwise it is refused in a line."""
  try:
    suites.evaluate(loaded, suites.Suite(suites.choose(str(file)), folder, **options))
  except UserError as error:
    assert "\n" not in str(error), str(error)
    return False
  return True


@pytest.mark.parametrize("share", [0.1, pytest.param(1.0, marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", OUTPUT_TYPES)
def test_fields_of_any_value(loaded, quick, tmp_path, kind, share, monkeypatch):  # noqa: F811
  """Nothing but a UserError, and no file outside of the folder of results."""
  metrics = [{"metric": name} for name in METRICS[kind] if name not in ("acc_pair", "rouge1", "rouge2", "rougeL")]
  base = {"output_type": kind, "doc_to_choice": "choices" if kind == "multiple_choice" else None,
          "doc_to_target": "{{gold}}", "metric_list": metrics}  # fmt: skip
  base |= {"generation_kwargs": {"max_gen_toks": 4}} if kind == "generate_until" else {}
  docs = DOCS[:3]
  write(tmp_path, docs)
  fields = [field.name for field in dataclasses.fields(TaskFile) if field.name not in ("folder", "groups", "means")]
  variants = [{field: value} for field in [*fields, "include", "group", "typo"] for value in VALUES]
  variants += [{"metadata": {field: value}} for field in [*METADATA, "each", "version"] for value in VALUES]
  variants += [{"generation_kwargs": {field: value}} for field in GENERATION for value in VALUES]
  variants = random.Random(0).sample(variants, int(share * len(variants)))
  before, done = {*tmp_path.rglob("*")}, 0
  monkeypatch.setattr(suites.metrics, "interval", lambda values, statistic, resamples=0: (0.0, 1.0))
  monkeypatch.setattr(suites, "hash_model", lambda loaded: "model")
  for number, change in enumerate(variants):
    (tmp_path / "colours.yaml").write_text(json.dumps(TASK | base | change))
    done += tried(loaded, tmp_path / "colours.yaml", tmp_path / "out" / str(number), templates=number % 2 == 0)
  others = {path for path in tmp_path.rglob("*") if pathlib.Path("out") not in path.relative_to(tmp_path).parents}
  assert {path for path in others if path != tmp_path / "out"} <= before
  assert 0.1 < done / len(variants) < 0.6


def test_tasks_of_one_name_are_refused(tmp_path, capsys):
  """They would be the same file; the same task twice is evaluated once, and --suite may be repeated."""
  write(tmp_path)
  (tmp_path / "other.yaml").write_text("include: colours.yaml\ntask: Colours\n")
  (tmp_path / "more.yaml").write_text("include: colours.yaml\ntask: more\n")
  names = [str(tmp_path / f"{name}.yaml") for name in ("colours", "more", "other")]
  assert [task.task for task in suites.choose(names[0], (), names[0], names[1])] == ["colours", "more"]
  with pytest.raises(UserError, match="two tasks are called 'Colours'"):
    suites.choose(names[0], (), names[2])
  options = ["--workdir", "none", "--output", str(tmp_path / "out")]
  assert main(["evaluate", "--suite", names[0], "--suite", names[2], *options]) == 2
  assert "two tasks" in capsys.readouterr().err


def test_an_item_that_cannot_be_scored_is_named(loaded, tmp_path):  # noqa: F811
  docs = [*DOCS, DOCS[0] | {"choices": ["red", "x" * 500, "c"]}]
  with pytest.raises(UserError, match="task colours, item 12: a continuation has 501 tokens"):
    suites.evaluate(loaded, suites.Suite(suites.choose(str(write(tmp_path, docs))), tmp_path / "out"))


def test_a_model_that_computes_no_numbers_gets_no_score(loaded, tmp_path):  # noqa: F811
  """The first choice is not the most likely one, and nothing that was computed before is lost."""
  params = jax.tree.map(lambda x: x * np.nan, loaded.params)
  with pytest.raises(UserError, match=r"task colours, item \d+: the model's log-likelihood is not a number"):
    suites.evaluate(
      dataclasses.replace(loaded, params=params), suites.Suite(suites.choose(str(write(tmp_path))), tmp_path / "out")
    )
  assert not (tmp_path / "out" / "results.json").exists()
