"""The data of tasks: exams in MMLU's published form, text files, stories for training; and what their results keep."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from benchmarks import belief
from lmjax.evals.suites import beliefs, items, metrics, task_files
from lmjax.inference import scoring
from lmjax.inference import suite as suites
from lmjax.utils.errors import UserError
from tests.conftest import DATA
from tests.evals.test_suites import loaded, suite, write  # noqa: F401

SUBJECTS = ("abstract_algebra", "law & order")


def write_exam(folder, rows=3):
  """Writes an exam: the text of a question says where it is from."""
  for split, count in (("test", rows), ("dev", 2)):
    (folder / "exam" / split).mkdir(parents=True)
    for subject in SUBJECTS:
      lines = [f'"{split}, {subject} {i}?",a,"b, c",d,e,{"ABCD"[i % 4]}\r\n' for i in range(count)]
      (folder / "exam" / split / f"{subject}_{split}.csv").write_text("".join(lines))


def test_an_exam_as_mmlu_is_published(loaded, tmp_path):  # noqa: F811
  """A file for each subject, without a header; examples are the first ones of the same subject in dev."""
  write_exam(tmp_path)
  (task,) = suites.choose("exam_csv")
  made = items.make_items(task, str(tmp_path), shots=2)
  assert len(made) == 6 and [item.target for item in made[:3]] == [(0,), (1,), (2,)]
  for item in made:
    subject = item.doc["subject"]
    own, *others = sorted(SUBJECTS, key=lambda name: name != subject)
    first = f"dev, {own} 0?\nA. a\nB. b, c\nC. d\nD. e\nAnswer: A\n\ndev, {own} 1?"
    assert item.contexts[0].startswith(first) and others[0] not in item.contexts[0]
  with pytest.raises(UserError, match="3 shots need more examples with the subject 'abstract_algebra'"):
    items.make_items(task, str(tmp_path), shots=3)
  results = suites.evaluate(loaded, suite("exam_csv", tmp_path / "out", data=str(tmp_path)))["tasks"]["exam_csv"]
  assert {name: part["items"] for name, part in results["by"].items()} == {f"subject={name}": 3 for name in SUBJECTS}
  assert "Calibration" in (tmp_path / "out" / "results.html").read_text()


@pytest.mark.parametrize("line", ["q,a,b,c,d", "q,a,b,c,d,A,more", '"q', "q,a,b,c,d,E", "q" * 200_000 + ",a,b,c,d,A"])
def test_a_malformed_exam_is_refused(tmp_path, line):
  write_exam(tmp_path)
  file = tmp_path / "exam" / "test" / "law & order_test.csv"
  file.write_text("x,a,b,c,d,A\n" + line + "\n")
  with pytest.raises(UserError, match="law & order_test.csv:2|one of its choices") as error:
    items.make_items(suites.choose("exam_csv")[0], str(tmp_path))
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "cut, wanted",
  [
    ("line", ["one two", "three", "four"]),
    ("document", ["one two\nthree\n\nfour\n"]),
    ("paragraph", ["one two\nthree", "four"]),
  ],
)
def test_text_is_scored_as_a_whole(loaded, tmp_path, cut, wanted):  # noqa: F811
  """Bits per word and per byte are those of the log-likelihood of all of it."""
  (tmp_path / "a.txt").write_text("one two\nthree\n\nfour\n")
  names = [{"metric": "bits_per_byte"}, {"metric": "bits_per_word"}]
  file = write(
    tmp_path, dataset_path="text", dataset_kwargs={"data_files": {"test": "*.txt"}, "sample_by": cut},
    output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="{{text}}", doc_to_choice=None,
    metric_list=names,
  )  # fmt: skip
  (task,) = suites.choose(str(file))
  assert [item.continuations[0] for item in items.make_items(task, None)] == wanted
  scores = suites.evaluate(loaded, suite(file, tmp_path / "out"))["tasks"]["colours"]["metrics"]
  records = [json.loads(line) for line in (tmp_path / "out" / "colours.jsonl").read_text().splitlines()[1:]]
  bits = -sum(record["log_likelihood"] for record in records) / np.log(2)
  assert np.isclose(scores["bits_per_byte"]["value"], bits / sum(len(text.encode()) for text in wanted))
  assert np.isclose(scores["bits_per_word"]["value"], bits / sum(record["words"] for record in records))


def test_stories_for_training_are_not_those_that_are_asked(tmp_path):
  """No combination of names, places and things is in both; twins stay together, each with its own answer."""
  belief.write(tmp_path, pairs=300, others=60)
  held_out = [json.loads(line) for line in (tmp_path / "held_out.jsonl").read_text().splitlines()]
  trained = [json.loads(line)["text"] for line in (tmp_path / "train.jsonl").read_text().splitlines()]
  asked = {belief.combination(doc) for doc in [*held_out, *beliefs.stories()]}
  known = {belief.combination(doc): doc for doc in held_out}
  assert len(known) > 50 and len(trained) == 600
  for first, second in zip(trained[::2], trained[1::2], strict=True):
    (story, answer), (twin, other) = (text.split("\nAnswer: ") for text in (first, second))
    assert story != twin and answer != other
    assert belief.combination({"story": story, "choices": [answer, other]}) not in asked
  made = items.make_items(task_files.load(str(tmp_path / "held_out.yaml"))[0], None)
  assert len(made) == 120 and made[0].contexts[0].endswith("\nAnswer:")
  assert metrics._pairs([{"pair": item.doc["pair"], "acc": 1.0 - item.target[0]} for item in made]).sum() == 0


@pytest.mark.skipif(not DATA.exists(), reason="real data is absent")
def test_all_published_beliefs_are_asked():
  """Of stories without twins, each is counted by itself."""
  count = {task.task: len(items.make_items(task, str(DATA))) for task in suites.choose("beliefs")}
  assert count["beliefs_dodell_feder"] == 10 and min(count["beliefs_kosinski"], count["beliefs_bigtom"]) > 15
  assert {task.task for task in suites.choose("beliefs") if "acc_pair" not in task.metrics()} == {
    "beliefs_dodell_feder"
  }


def test_the_hash_of_a_model_is_exact(loaded):  # noqa: F811
  """The least change of any parameter, or an exchange of two values, makes another model."""
  hashes = {suites.hash_model(loaded)}
  leaves, tree = jax.tree.flatten(loaded.params)
  for number, leaf in enumerate(leaves):
    changed, swapped = np.array(leaf), np.array(leaf)
    changed.flat[-1] = np.nextafter(changed.flat[-1], np.float32(9))
    swapped.flat[:2] = swapped.flat[1::-1] if leaf.size > 1 and swapped.flat[0] != swapped.flat[1] else (8,) * 2
    for other in (changed, swapped):
      params = jax.tree.unflatten(tree, [*leaves[:number], jax.numpy.asarray(other), *leaves[number + 1 :]])
      hashes.add(suites.hash_model(dataclasses.replace(loaded, params=params)))
  assert len(hashes) == 1 + 2 * len(leaves)


def test_items_depend_on_version_stride_and_their_own_data(loaded, tmp_path, monkeypatch):  # noqa: F811
  """Besides the model, the templates and the shots (test_suites.py); another limit keeps what it has in common."""
  file, scored = write(tmp_path), []
  scores = scoring.scores
  monkeypatch.setattr(scoring, "scores", lambda *args: scored.append(len(args[1])) or scores(*args))
  for options in ({"limit": 4}, {"limit": 6}, {"limit": 3}, {}, {"stride": 5}, {"stride": 5}):
    results = suites.evaluate(loaded, suite(file, tmp_path / "out", **options))
    assert (results["limit"], results["tasks"]["colours"]["items"]) == (options.get("limit"), options.get("limit", 12))
  monkeypatch.setattr(suites, "VERSION", suites.VERSION + 1)
  suites.evaluate(loaded, suite(file, tmp_path / "out", stride=5))
  write(tmp_path, metadata={"version": 2})
  suites.evaluate(loaded, suite(file, tmp_path / "out", stride=5))
  assert scored == [4, 2, 0, 6, 12, 0, 12, 12]
  kept = json.loads((tmp_path / "out" / "results.json").read_text())
  own = kept["tasks"]["colours"]
  assert kept["version"] == suites.VERSION and len(kept["model"]) == len(own["template"]) == 16 and own["shots"] == 0
  assert own["version"] == 2 and own["limit"] is None
