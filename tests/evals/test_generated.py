"""Generated answers: their metrics beside the libraries that define them, and suites that generate."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sacrebleu
from rouge_score import rouge_scorer

from lmjax.data.tokenizers.spelling import spell
from lmjax.data.tokenizers.words import SPECIAL, Words
from lmjax.evals.suites import generated, items, metrics
from lmjax.evals.suites.encode import Encoder
from lmjax.evals.suites.items import Item
from lmjax.evals.suites.likelihood import Likelihood
from lmjax.evals.suites.task_files import TaskFile
from lmjax.inference import generate, scoring
from lmjax.inference import suite as suites
from lmjax.parallel.mesh import MeshShape
from lmjax.parallel.sharding import Layout
from lmjax.storage.base import LoadedModel
from lmjax.tasks.bidirectional_lm import BidirectionalLM
from lmjax.testing import fake_batch, init_params
from lmjax.utils.errors import UserError
from tests.evals.test_suites import loaded, suite, write  # noqa: F401
from tests.families import tiny_task

NAMES = ("exact_match", "answer_f1", "bleu", "chrf", "rouge1", "rouge2", "rougeL")
GENERATE = {
  "output_type": "generate_until", "doc_to_choice": None, "doc_to_text": "Q: {{question}}\nA:",
  "doc_to_target": "{{choices[gold]}}", "generation_kwargs": {"until": ["\n"], "max_gen_toks": 5},
  "metric_list": [{"metric": name} for name in NAMES],
}  # fmt: skip
ANSWERS = ["the cat sat on the mat", "a dog, in the house", "no", "The green house is on the hill today", ""]
RIGHT = [
  ("the cat sat on the mat .", "a cat was on the mat"), ("the dog is in the house", "dogs"), ("yes", "no"),
  ("the green house stands on a hill today", "it is green"), ("nothing", "none of it"),
]  # fmt: skip


def task(**fields):
  return TaskFile("t", "json", {}, "x", "generate_until", metric_list=[{"metric": n} for n in NAMES], **fields)


def records(of=None):
  rows = [Item(i, ("",), ("",), (), right, {}) for i, right in enumerate(RIGHT)]
  return [generated.score_answer(of or task(), item, answer) for item, answer in zip(rows, ANSWERS, strict=True)]


def test_metrics_are_those_of_the_libraries():
  """BLEU and chrF over all items with several references, ROUGE as a mean; each interval contains its score."""
  summary = metrics.summarise(task(), records())
  references = [list(refs) for refs in zip(*RIGHT, strict=True)]
  assert summary["bleu"]["value"] == pytest.approx(sacrebleu.corpus_bleu(ANSWERS, references).score) and (
    summary["bleu"]["value"] > 10
  )
  assert summary["chrf"]["value"] == pytest.approx(sacrebleu.corpus_chrf(ANSWERS, references).score)
  scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"])
  for name in ("rouge1", "rouge2", "rougeL"):
    best = [max(scorer.score(r, a)[name].fmeasure for r in right) for a, right in zip(ANSWERS, RIGHT, strict=True)]
    assert summary[name]["value"] == pytest.approx(np.mean(best)) and summary[name]["value"] > 0.2
  assert summary["exact_match"]["value"] == 0.2
  f1 = [2 * 4 / (4 + 4), 2 * 3 / (3 + 4), 1.0, 2 * 5 / (6 + 6), 0.0]  # of words without articles and punctuation
  assert summary["answer_f1"]["value"] == pytest.approx(np.mean(f1))
  for score in summary.values():
    assert score["low"] <= score["value"] + 1e-9 and score["value"] <= score["high"] + 1e-9 and score["low"] < 100
  assert all(summary[name]["low"] < summary[name]["high"] for name in NAMES)


def test_an_interval_is_of_the_score_of_a_sample():
  """Of items that are all alike, BLEU has one value; a resampled BLEU is that of the repeated items."""
  same = [generated.counts("bleu", ANSWERS[0], RIGHT[0])] * 4
  values = np.array(same, np.float64)[:, None]
  assert generated.corpus_score("bleu")(values) == pytest.approx(
    sacrebleu.corpus_bleu([ANSWERS[0]] * 4, [[r] * 4 for r in RIGHT[0]]).score
  )


def test_numbers_of_answers():
  for text, number in {
    "#### 1,234": "1234",
    "is $18.00.": "18",
    "-3.5 m": "-3.5",
    "none": "",
    "4 + 5 = 9": "9",
  }.items():
    assert generated.last_number(text) == number
  of = task(metadata={"answer": "number"})
  assert generated.score_answer(of, Item(0, ("",), ("",), (), ("#### 7",), {}), "It is 7.00.")["exact_match"] == 1


def test_options_of_exact_match():
  def score(answer, right, **options):
    of = TaskFile("t", "json", {}, "x", metric_list=[{"metric": "exact_match"} | options])
    return generated.score_answer(of, Item(0, ("",), ("",), (), (right,), {}), answer)["exact_match"]

  assert score("Paris", "paris") == 0 == score("Paris.", "Paris")
  assert score("Paris", "paris", ignore_case=True) == 1 == score("Paris.", "Paris", ignore_punctuation=True)
  assert score("12 a", "3 a", ignore_numbers=True) == 1 == score("so Paris", "Paris", regexes_to_ignore=["so "])


def test_a_suite_generates(loaded, tmp_path, monkeypatch):  # noqa: F811
  """Greedily until a stop string, in any batch; a repeated command generates nothing."""
  file, made = write(tmp_path, **GENERATE), []
  together = generate.Generator.all_texts

  def counted(self, rows, batch):
    made.append((len(rows), batch))
    return together(self, rows, batch)

  monkeypatch.setattr(generate.Generator, "all_texts", counted)
  results = suites.evaluate(loaded, suite(file, tmp_path / "out"))
  scores = results["tasks"]["colours"]["metrics"]
  assert set(scores) == set(NAMES) and made == [(12, 8)]
  lines = [json.loads(line) for line in (tmp_path / "out" / "colours.jsonl").read_text().splitlines()[1:]]
  alone = generate.Generator(loaded, scoring.Sampling(0.0), 5, stops=("\n",))
  prompts = {item.number: item.contexts[0] for item in items.make_items(suites.choose(str(file))[0], None)}
  assert len(lines) == 12 and all(len(line["answer"].encode()) <= 15 for line in lines)
  for line in lines[:3]:
    assert line["answer"] == alone.texts([(prompts[line["item"]], 0)])[0] and "\n" not in line["answer"]
  assert suites.evaluate(loaded, suite(file, tmp_path / "out")) == results and made[1:] == [(0, 8)]


def test_a_prompt_that_is_too_long_loses_its_beginning(loaded):  # noqa: F811
  """As the answer's tokens need space; what is left is what the model continues."""
  prompt = "a long story about many things. " * 9
  ((_, cut),) = scoring.answers(loaded, [prompt], {"max_gen_toks": 20})
  ((_, last),) = scoring.answers(loaded, [prompt[-(128 - 20) :]], {"max_gen_toks": 20})
  assert cut == last
  with pytest.raises(UserError, match="max_gen_toks must be from 1 to 127, not 128"):
    next(scoring.answers(loaded, ["a"], {"max_new_tokens": 128}))
  with pytest.raises(UserError, match="top_p"):
    next(scoring.answers(loaded, ["a"], {"top_p": 2, "do_sample": True}))


@pytest.mark.parametrize("changes, message", [
  ({"generation_kwargs": {"num_beams": 4}}, "generation_kwargs.num_beams is not supported"),
  ({"metric_list": ["exact_match"]}, "metric_list is a list of fields"),
  ({"metric_list": [{"metric": "blue"}]}, "did you mean 'bleu'"),
  ({"metric_list": [{"metric": "exact_match", "ignore_cas": True}]}, "'ignore_cas' is not supported"),
])  # fmt: skip
def test_what_changes_no_score_is_refused(tmp_path, changes, message):
  with pytest.raises(UserError, match=message):
    suites.choose(str(write(tmp_path, **(GENERATE | changes))))


@pytest.fixture(scope="module")
def elmo():
  layout = Layout.build(MeshShape().build(jax.devices()[:1]), "ddp")
  words = Words((*SPECIAL, "red", "dark", "green", "blue", "what", "is", "and", "more", "no", "other", "thing"))
  task = tiny_task("ELMo", vocabulary=words.size)
  return LoadedModel(task, words, 16, layout, init_params(task, fake_batch(task, 1, 8)), 0, {})


def test_elmo_is_scored_in_both_directions(elmo):
  """The mean of both directions; of a whole sentence, half of the loss that the model is trained with."""
  texts = ["red green blue", "what is more"]
  loss = jax.jit(lambda params, batch: elmo.task.loss(params, {}, elmo.task.initial_carry(1), batch)[0])
  requests = [[("", text)] for text in texts]
  whole, pairs = (
    {
      score.number: score.log_likelihoods[0]
      for complete in scoring.scores(elmo, requests, rolling)
      for score in complete
    }
    for rolling in (True, False)
  )
  assert isinstance(elmo.task, BidirectionalLM)
  for i, text in enumerate(texts):
    words = text.split()
    ids = elmo.tokenizer.ids(words)
    batch = {
      "characters": [spell(word, 8) for word in ("<S>", *words[:-1])], "targets": ids,
      "reverse_characters": [spell(word, 8) for word in ("</S>", *words[:0:-1])], "reverse_targets": ids[::-1],
      "weights": np.ones(len(ids), np.float32),
    }  # fmt: skip
    batch = {key: jnp.asarray(np.array(value))[None] for key, value in batch.items()}
    terms = loss(elmo.params, batch)
    wanted = -(terms["forwards"].total + terms["backwards"].total) / 2
    np.testing.assert_allclose([whole[i], pairs[i]], wanted, rtol=1e-5)
  # Of a continuation, its words alone: those of the whole without what its beginning adds forwards and backwards.
  (row,) = Encoder(elmo.tokenizer, "bidirectional_lm", 16).pair("red green", " blue more")
  assert row.inputs == ("red", "green", "blue", "more") and list(row.targets) == elmo.tokenizer.ids(["blue", "more"])
  (((_, (log_probs,)),), ((_, (every,)),)) = (
    list(Likelihood(elmo.task, elmo.layout, 16).each_token(elmo.params, rows))
    for rows in ([row], Encoder(elmo.tokenizer, "bidirectional_lm", 16).rolling("red green blue more"))
  )
  np.testing.assert_allclose(log_probs, every[2:], rtol=1e-5)
  with pytest.raises(UserError, match="from 1 to 16 words"):
    Encoder(elmo.tokenizer, "bidirectional_lm", 16).pair("red", "")


def test_elmo_answers_a_suite(elmo, tmp_path):
  results = suites.evaluate(elmo, suite(write(tmp_path), tmp_path / "out"))
  assert results["tasks"]["colours"]["metrics"]["acc"]["high"] > 0
  without = LoadedModel(elmo.task, elmo.tokenizer, 16, elmo.layout, elmo.params | {"heads": {}}, 0, {})
  with pytest.raises(UserError, match="has no softmax"):
    suites.evaluate(without, suite(write(tmp_path), tmp_path / "other"))
