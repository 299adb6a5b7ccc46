"""Learning from answers that are desirable or not: their rows, and a loss that equals plain numpy of the paper."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.data.chat.template import Message
from lmjax.data.objectives.judgements import Judgements
from lmjax.data.sources.base import BadRecord
from lmjax.data.sources.judgements import JsonJudgements, Judgement, judged
from lmjax.data.sources.preferences import Preference
from lmjax.data.tokenizers.registry import TokenizerConfig
from lmjax.tasks.base import FrozenModel, weighted_sum
from lmjax.tasks.causal_lm import CausalLM
from lmjax.tasks.kto import KTO
from lmjax.testing import init_params, tiny_decoder
from lmjax.train import accumulate

PROMPTS = ("who is it", "c", "and then?", "how many of them")
JUDGED = [("me", True), ("yes", False), ("never", True), ("it is 3, or 4 perhaps", False)]
ROWS = 2


def rows(documents=None, length=256):
  """Returns the reader, the tokenizer, and a batch: three answers in its first row, and one in its second."""
  documents = documents or [
    Judgement((Message("user", prompt),), (answer,), (label,), f"test:{i}")
    for i, (prompt, (answer, label)) in enumerate(zip(PROMPTS, JUDGED, strict=True))
  ]
  reader = Judgements(documents, documents, length, TokenizerConfig("bpe", 300), groups=3)
  tokenizer = reader.make_tokenizer()
  batch = reader.validate(tokenizer, ROWS)[0]
  return reader, tokenizer, {key: jnp.asarray(value) for key, value in batch.items() if key != "bytes"}


def decoded(tokenizer, batch):
  """Returns {(row, segment): (prompt, answer, desirable)} of a batch."""
  found = {}
  for row, segments in enumerate(np.asarray(batch["segments"])):
    for segment in set(segments.tolist()) - {0}:
      at = {key: np.asarray(batch[key][row])[segments == segment] for key in ("inputs", "targets", "weights", "tags")}
      text = tokenizer.fast.decode(at["inputs"].tolist(), skip_special_tokens=False)
      answer = tokenizer.fast.decode(at["targets"][at["weights"] > 0].tolist(), skip_special_tokens=False)
      prompt = text.partition("<|im_start|>user\n")[2].partition("<|im_end|>")[0]
      found[row, segment] = (prompt, answer.removesuffix("<|im_end|>"), bool(at["tags"].all()))
  return found


def test_rows_have_answers_with_their_own_prompt_and_with_another():
  _, tokenizer, batch = rows()
  found = decoded(tokenizer, batch)
  own = {key: value for key, value in found.items() if key[1] % 2}
  assert sorted(own.values()) == sorted((p, a, d) for p, (a, d) in zip(PROMPTS, JUDGED, strict=True))
  mismatched = {key: value for key, value in found.items() if not key[1] % 2}
  assert len(mismatched) == 3 and not any(desirable for *_, desirable in mismatched.values())
  answers = {prompt: answer for prompt, answer, _ in own.values()}
  for (row, segment), (prompt, answer, _) in mismatched.items():
    assert own[row, segment - 1][0] == prompt and answer != answers[prompt]
  assert {answer for _, answer, _ in mismatched.values()} == set(list(answers.values())[:3])


def test_answers_to_one_prompt_are_not_mismatched():
  """Those of comparisons follow each other: an answer gets the prompt of another comparison, or none."""
  prompts = [(Message("user", prompt),) for prompt in PROMPTS[:2]]
  pairs = [judged(Preference(prompts[0], ("b", "d"))), judged(Preference(prompts[1], ("f",)))]
  _, tokenizer, batch = rows(pairs)
  found = decoded(tokenizer, batch)
  assert sorted(v for (_, segment), v in found.items() if segment % 2) == [
    ("c", "f", True), ("who is it", "b", True), ("who is it", "d", False)
  ]  # fmt: skip
  assert sorted(v[:2] for (_, segment), v in found.items() if not segment % 2) in (
    [("c", "b"), ("who is it", "f")], [("c", "d"), ("who is it", "f")]
  )  # fmt: skip
  assert len(decoded(tokenizer, rows(pairs[:1])[2])) == 2, "no prompt but its own"


@dataclasses.dataclass(frozen=True)
class Given(KTO):
  """The log probability of each target is a parameter."""

  def log_probs(self, params, batch, *, rng=None):
    return params


def task_of(reader, tokenizer, kind=KTO, **changes):
  changes = dict(reference="somewhere", beta=0.3, desirable=1.5, undesirable=0.7) | changes
  return kind(tiny_decoder(vocabulary=tokenizer.size, length=reader.length), **reader.shared(), **changes)


def sums(batch, values, even):
  """Returns [(the sum over the tokens of an answer, whether it is desirable)] of all judged or mismatched answers."""
  found = []
  for row, segments in enumerate(np.asarray(batch["segments"])):
    for segment in sorted(set(segments.tolist()) - {0}):
      if (segment % 2 == 0) == even:
        own = (segments == segment) & (np.asarray(batch["weights"][row]) > 0)
        found.append((np.asarray(values[row], np.float64)[own].sum(), bool(batch["tags"][row][own].all())))
  return found


@pytest.mark.parametrize("sign", [1, -1])
def test_the_loss_is_that_of_the_paper(sign):
  """z is clamped at 0, which it is for one of the two signs; collected or not, the loss is the same."""
  reader, tokenizer, batch = rows()
  task = task_of(reader, tokenizer, Given)
  rng = np.random.default_rng(0)
  log_ratio = 0.1 * (rng.standard_normal(batch["targets"].shape) + 2 * sign)
  reference = -rng.exponential(size=batch["targets"].shape).astype(np.float32)
  policy = jnp.asarray(reference + log_ratio, jnp.float32)
  frozen = {"reference": FrozenModel(task, jnp.asarray(reference))}
  mean = np.mean([ratio for ratio, _ in sums(batch, log_ratio, even=True)])
  z = max(0.0, mean)
  assert (mean > 0.1) == (sign > 0) and abs(mean) > 0.1
  losses = []
  for ratio, good in sums(batch, log_ratio, even=False):
    weight, gain = (1.5, ratio - z) if good else (0.7, z - ratio)
    losses.append(weight - weight / (1 + math.exp(-0.3 * gain)))
  (collected,) = task.collect(policy, frozen, {}, batch, jax.random.key(0))
  assert {key: leaf.shape for key, leaf in collected.batch.items()} == {
    key: leaf.shape for key, leaf in task.spec(ROWS, reader.length).items()
  }
  for own in (batch, collected.batch):
    terms, _ = jax.jit(lambda policy, own: task.loss(policy, frozen, {}, own))(policy, own)
    assert terms["loss"].value() == pytest.approx(np.mean(losses), rel=1e-4)
    assert terms["kl"].value() == pytest.approx(z, rel=1e-4, abs=1e-7)
    assert float(terms["loss"].count) == float(task.counts(own)["loss"]) == 4
  grads = jax.grad(lambda policy: task.loss(policy, frozen, {}, batch)[0]["loss"].total)(policy)
  assert all(value == 0 for value, _ in sums(batch, grads, even=True)), "z has no gradient"
  assert all(value for value, _ in sums(batch, grads, even=False))


def test_it_starts_at_half_and_microbatches_add_up():
  reader, tokenizer, batch = rows()
  task = task_of(reader, tokenizer, desirable=1.0, undesirable=1.0)
  params = init_params(task, batch)
  rng = np.random.default_rng(1)
  moved = jax.tree.map(lambda p: p + 0.1 * rng.standard_normal(p.shape).astype(np.float32), params)

  def loss(params, carry, part, rng):
    terms, carry = task.loss(params, {}, carry, part)
    return weighted_sum(task, terms, task.counts(batch)), (terms, carry)

  def collected(reference):
    frozen = {"reference": FrozenModel(CausalLM(task.model), reference)}
    return next(iter(task.collect(params, frozen, {}, batch, jax.random.key(0)))).batch

  whole, parts = (jax.jit(accumulate(loss, n)) for n in (1, 2))
  assert whole(params, {}, collected(params), jax.random.key(0))[1]["loss"].value() == pytest.approx(0.5, abs=1e-6)
  other = collected(moved)
  (one, terms, _), (two, more, _) = (fn(params, {}, other, jax.random.key(0)) for fn in (whole, parts))
  assert terms["kl"].value() > 0
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, two)
  assert all(terms[key].value() == pytest.approx(more[key].value(), rel=1e-5) for key in terms)


def test_judged_answers_of_files(tmp_path, capsys):
  answer = {"role": "assistant", "content": "b"}
  records = [
    {"prompt": "a", "completion": "b", "label": True},
    {"prompt": [{"role": "user", "content": "a"}], "completion": [answer], "label": True},
    {"prompt": "a", "chosen": "b", "rejected": "c"},
    {"prompt": "a", "completion": "b", "label": "yes"},
    {"prompt": "a", "completion": " ", "label": False},
    {"prompt": "a", "completion": [answer, answer], "label": False},
  ]
  (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
  source = JsonJudgements(str(tmp_path / "a.jsonl"), system="S")
  assert len(source) == 5 and "1 of 6 records teach nothing" in capsys.readouterr().err
  prompt = (Message("system", "S"), Message("user", "a"))
  assert [source[i][:3] for i in range(3)] == [
    (prompt, ("b",), (True,)), (prompt, ("b",), (True,)), (prompt, ("b", "c"), (True, False))
  ]  # fmt: skip
  for i in (3, 4):
    assert isinstance(source[i], BadRecord) and "a `label` that is not true or false" in source[i].why


@pytest.mark.parametrize("changes", [dict(beta=0.0), dict(desirable=-1.0), dict(answers=3)])
def test_settings_that_make_no_sense_are_refused(changes):
  with pytest.raises(ValueError):
    KTO(tiny_decoder(), **changes)
