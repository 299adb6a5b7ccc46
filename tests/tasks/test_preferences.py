"""Tasks that learn from comparisons: their rows, and losses that equal plain numpy written from the papers."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lmjax import config, experiment
from lmjax.compression.lora import LoRA
from lmjax.data.chat.template import Message
from lmjax.data.objectives.preferences import Preferences
from lmjax.data.sources.base import BadRecord
from lmjax.data.sources.preferences import Preference
from lmjax.data.tokenizers.registry import TokenizerConfig
from lmjax.parallel.sharding import LogicallyPartitioned
from lmjax.tasks.base import FrozenModel, weighted_sum
from lmjax.tasks.causal_lm import CausalLM
from lmjax.tasks.dpo import DPO
from lmjax.tasks.orpo import ORPO
from lmjax.tasks.reward import RewardModel
from lmjax.testing import init_params, tiny_decoder
from lmjax.utils.errors import UserError

PROMPTS = [
  (Message("user", "who is it"),),
  (Message("system", "short"), Message("user", "a b"), Message("assistant", "b a"), Message("user", "and then?")),
  (Message("user", "c"),),
]
ANSWERS = [("me", "it is you, who else", "no"), ("c d", "d c"), ("yes", "no, never", "maybe or not")]


def rows(answers=3, length=384, batch=2, prompts=PROMPTS, ranked=ANSWERS, **changes):
  """Returns the reader, the tokenizer, and a batch; of groups, at most two are in a row."""
  source = [
    Preference(prompt, own[:answers], f"test:{i}") for i, (prompt, own) in enumerate(zip(prompts, ranked, strict=True))
  ]
  settings = dict(answers=answers, groups=2) | changes
  reader = Preferences(source, source, length, TokenizerConfig("bpe", 300), **settings)
  tokenizer = reader.make_tokenizer()
  (made,) = reader.validate(tokenizer, batch)
  return reader, tokenizer, {key: jnp.asarray(value) for key, value in made.items() if key != "bytes"}


def task_of(reader, tokenizer, kind=DPO, **changes):
  model = tiny_decoder(vocabulary=tokenizer.size, length=reader.length)
  return kind(model, **reader.shared(), **changes)


def noisy(params, seed):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda p: p + 0.1 * rng.standard_normal(p.shape).astype(np.float32), params)


def log_probs_apart(task, params, batch):
  """Returns {(row, group, answer): (log p of its tokens, their number)}, by a forward pass of each answer alone."""
  found, forward = {}, jax.jit(lambda params, inputs: task.forward(params, {"inputs": inputs}).logits)
  for row in range(len(batch["inputs"])):
    for group, k in itertools.product(range(task.groups), range(task.answers)):
      own = np.asarray(batch["segments"][row] == group * task.answers + k + 1)
      if own.any():
        inputs, targets = (np.asarray(batch[key][row])[own] for key in ("inputs", "targets"))
        padded = np.zeros((1, 128), np.int32)
        padded[0, : len(inputs)] = inputs
        logits = np.asarray(forward(params, jnp.asarray(padded)), np.float64)[
          0, : len(inputs), : task.model.config.vocabulary
        ]
        nll = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(targets)), targets]
        weights = np.asarray(batch["weights"][row])[own]
        found[row, group, k] = (-(nll * weights).sum(), weights.sum())
  return found


def by_group(found):
  groups = {}
  for (row, group, k), value in sorted(found.items()):
    assert k == len(groups.setdefault((row, group), []))
    groups[row, group].append(value)
  return list(groups.values())


def test_rows_have_each_answer_after_its_prompt():
  reader, tokenizer, batch = rows()
  seen = []
  for row, segment in itertools.product(range(2), range(1, 7)):
    own = np.asarray(batch["segments"][row]) == segment
    if own.any():
      inputs, weights = np.asarray(batch["inputs"][row])[own], np.asarray(batch["weights"][row])[own]
      targets = np.asarray(batch["targets"][row])[own]
      whole = tokenizer.fast.decode(inputs.tolist(), skip_special_tokens=False)
      learned = tokenizer.fast.decode(targets[weights > 0].tolist(), skip_special_tokens=False)
      assert whole.endswith(f"<|im_start|>assistant\n{learned}") and learned.endswith("<|im_end|>")
      np.testing.assert_array_equal(np.asarray(batch["positions"][row])[own], np.arange(own.sum()))
      seen.append((whole[: -len(learned)], (segment - 1) % 3, learned.removesuffix("<|im_end|>")))
  assert sorted((k, text) for _, k, text in seen) == sorted((k, t) for own in ANSWERS for k, t in enumerate(own))
  assert len({prompt for prompt, *_ in seen}) == 3 and sum("b a<|im_end|>" in prompt for prompt, *_ in seen) == 2


def test_bad_groups_are_named():
  reader, tokenizer, _ = rows()
  long = " ".join(map(str, range(99)))
  cases = {
    "has 3 answers": (rows(2)[0], Preference(PROMPTS[0], ANSWERS[0], "x:1")),
    "no space for an answer in 127": (reader, Preference((Message("user", long),), ("a", "b"), "x:1")),
    "same in their first 128 tokens": (reader, Preference(PROMPTS[0], (long + "a", long + "b"), "x:1")),
  }
  for why, (own, document) in cases.items():
    bad = own.documents(own.source, tokenizer, None, 1).encode(document)
    assert isinstance(bad, BadRecord) and why in bad.why and bad.where == "x:1"


def sigmoid(x):
  return 1 / (1 + math.exp(-x))


LOSSES = {
  "dpo": (dict(), lambda b, h: -math.log(sigmoid(b * h))),
  "smoothed": (dict(smoothing=0.2), lambda b, h: -0.8 * math.log(sigmoid(b * h)) - 0.2 * math.log(sigmoid(-b * h))),
  "ipo": (dict(form="ipo"), lambda b, h: (h - 1 / (2 * b)) ** 2),
  "simpo": (dict(beta=2.0, margin=0.5, per_token=True, reference="none"), lambda b, h: -math.log(sigmoid(b * h - 0.5))),
}


@dataclasses.dataclass(frozen=True)
class Given(DPO):
  """The log probability of each target is a parameter."""

  def log_probs(self, params, batch, *, rng=None):
    return params


def sums_of(task, batch, values):
  """Returns [(the sum over its tokens, their number) of each answer] of each group."""
  groups = {}
  for row, group, k in itertools.product(range(2), range(task.groups), range(task.answers)):
    own = np.asarray(batch["segments"][row] == group * task.answers + k + 1)
    if own.any():
      weights = np.asarray(batch["weights"][row])[own].astype(np.float64)
      groups.setdefault((row, group), []).append(((np.asarray(values[row])[own] * weights).sum(), weights.sum()))
  return list(groups.values())


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_those_of_the_papers(name):
  """Each group weighs 1, whatever its number of answers."""
  changes, formula = LOSSES[name]
  reader, tokenizer, batch = rows()
  task = task_of(reader, tokenizer, Given, **({"beta": 0.3, "reference": "somewhere"} | changes))
  rng = np.random.default_rng(0)
  policy, other = (-rng.exponential(size=batch["targets"].shape).astype(np.float32) for _ in range(2))
  terms, _ = task.loss(jnp.asarray(policy), {"reference": FrozenModel(task, jnp.asarray(other))}, {}, batch)
  total, right = [], []
  for p, r in zip(sums_of(task, batch, policy), sums_of(task, batch, other), strict=True):
    ratios = [a[0] - b[0] * (task.reference != "none") for a, b in zip(p, r, strict=True)]
    ratios = [ratio / size if task.per_token else ratio for ratio, (_, size) in zip(ratios, p, strict=True)]
    pairs = list(itertools.combinations(ratios, 2))
    total.append(sum(formula(task.beta, better - worse) for better, worse in pairs) / len(pairs))
    right.append(np.mean([better > worse for better, worse in pairs]))
  np.testing.assert_allclose(terms["loss"].value(), np.mean(total), rtol=1e-4)
  np.testing.assert_allclose(terms["accuracy"].value(), np.mean(right), rtol=1e-5)
  assert float(terms["loss"].count) == float(task.counts(batch)["loss"]) == 3


@dataclasses.dataclass(frozen=True)
class GivenORPO(ORPO):
  """The log probability of each target is a parameter."""

  def log_probs(self, params, batch, *, rng=None):
    return params


def test_the_loss_of_odds_ratios_is_that_of_the_paper():
  reader, tokenizer, batch = rows()
  task = task_of(reader, tokenizer, GivenORPO, beta=0.4)
  policy = -np.random.default_rng(0).exponential(size=batch["targets"].shape).astype(np.float32)
  terms, _ = task.loss(jnp.asarray(policy), {}, {}, batch)
  nll, tokens, odds = 0.0, 0.0, []
  for group in sums_of(task, batch, policy):
    nll, tokens = nll - group[0][0], tokens + group[0][1]
    p = [math.exp(total / size) for total, size in group]
    pairs = list(itertools.combinations([x / (1 - x) for x in p], 2))
    odds.append(np.mean([-math.log(sigmoid(math.log(better / worse))) for better, worse in pairs]))
  counts = task.counts(batch)
  assert terms["nll"].value() == pytest.approx(nll / tokens, rel=1e-4) and float(counts["nll"]) == tokens
  assert terms["odds"].value() == pytest.approx(np.mean(odds), rel=1e-4) and float(counts["odds"]) == 3
  loss = float(weighted_sum(task, terms, counts))
  assert loss == pytest.approx(nll / tokens + 0.4 * np.mean(odds), rel=1e-4)
  certain = task.loss(jnp.zeros_like(policy), {}, {}, batch)[0]["odds"].value()
  assert certain == pytest.approx(math.log(2), rel=1e-4), "P = 1 has finite odds"


def test_answers_in_a_row_have_the_log_probabilities_of_each_alone():
  reader, tokenizer, batch = rows()
  task = task_of(reader, tokenizer)
  params = noisy(init_params(task, batch), 1)
  apart = by_group(log_probs_apart(task, params, batch))
  together = sums_of(task, batch, jax.jit(task.log_probs)(params, batch))
  for own, alone in zip(together, apart, strict=True):
    np.testing.assert_allclose(own, alone, rtol=1e-4)


@pytest.mark.parametrize("name", ["sft", "dpo", "dpo:loss=ipo", "dpo:loss=simpo", "orpo", "reward:answers=3"])
def test_configs_build(name):
  file, _, choice = name.partition(":")
  run = experiment.build(config.load(f"configs/{file}.py:{choice},debug"), devices=jax.devices())
  assert run.data.length == 96 and run.task.model.config.vocabulary == 512
  assert getattr(run.task, "answers", 2) == (3 if "answers" in name else 2)


def test_it_starts_at_log_2_and_the_reference_has_no_gradient():
  """And rows without a group change nothing; nor does splitting the batch."""
  reader, tokenizer, batch = rows()
  task = task_of(reader, tokenizer, reference="somewhere")
  params = noisy(init_params(task, batch), 1)

  @jax.jit
  def loss(params, other, batch):
    return task.loss(params, {"reference": FrozenModel(CausalLM(task.model), other)}, {}, batch)[0]["loss"]

  np.testing.assert_allclose(loss(params, params, batch).value(), math.log(2), rtol=1e-6)
  grads = jax.jit(jax.grad(lambda p, o: loss(p, o, batch).total, argnums=(0, 1)))(params, params)
  sizes = [sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(own)) for own in grads]
  assert sizes[0] > 0 and sizes[1] == 0
  other = noisy(params, 3)
  whole = loss(params, other, batch)
  only = [loss(params, other, {key: value.at[1 - i].set(0) for key, value in batch.items()}) for i in range(2)]
  np.testing.assert_allclose(sum(own.total for own in only), whole.total, rtol=1e-6)
  assert sum(float(own.count) for own in only) == float(whole.count) == 3


def test_with_lora_the_reference_is_the_base():
  reader, tokenizer, batch = rows()
  task = task_of(reader, tokenizer, reference="base")
  params = noisy(init_params(task, batch), 1)
  with pytest.raises(UserError, match="only LoRA"):
    task.loss(params, {}, {}, batch)
  named = jax.eval_shape(lambda: task.init(jax.random.key(0), batch))
  boxed = jax.tree.map(
    lambda box, value: box.replace(value=value), named, params, is_leaf=lambda x: isinstance(x, LogicallyPartitioned)
  )
  lora = LoRA(targets="attention/.*kernel", rank=2)
  trained, state, base = map(nn.unbox, lora.init(boxed))
  moved = noisy(trained, 2)
  seen = lora.forward(moved, state, base)
  apart = dataclasses.replace(task, reference="somewhere")
  frozen = {"reference": FrozenModel(CausalLM(task.model), params)}
  wanted = jax.jit(lambda seen: apart.loss(seen, frozen, {}, batch)[0]["loss"])(seen).value()
  assert abs(wanted - math.log(2)) > 1e-3
  loss = jax.jit(lambda trained: task.loss(lora.forward(trained, state, base), {}, {}, batch)[0]["loss"])
  np.testing.assert_allclose(loss(moved).value(), wanted, rtol=1e-5)
  np.testing.assert_allclose(loss(trained).value(), math.log(2), rtol=1e-6)


@pytest.mark.parametrize("changes", [dict(form="kto"), dict(beta=0), dict(smoothing=0.5), dict(form="ipo", margin=1.0)])
def test_settings_that_make_no_sense_are_refused(changes):
  with pytest.raises(ValueError):
    DPO(tiny_decoder(), **changes)


def test_a_reward_is_that_of_the_answer_alone_at_its_last_token():
  """The loss is the paper's over all pairs of a group, whose answers no other answer changes."""
  reader, tokenizer, batch = rows()
  task = task_of(reader, tokenizer, RewardModel)
  params = noisy(init_params(task, batch), 1)
  rewards = np.asarray(jax.jit(lambda params: task.forward(params, batch).logits)(params)).reshape(2, 2, 3)
  forward = jax.jit(lambda inputs: task.hidden(params, {"inputs": inputs}).tokens)
  groups = {}
  for row, group, k in itertools.product(range(2), range(2), range(3)):
    own = np.asarray(batch["segments"][row] == group * 3 + k + 1)
    if own.any():
      padded = np.zeros((1, 128), np.int32)
      padded[0, : own.sum()] = np.asarray(batch["inputs"][row])[own]
      assert padded[0, own.sum() - 1] == tokenizer.fast.token_to_id("<|im_end|>")
      vector = forward(jnp.asarray(padded))[:, own.sum() - 1]
      wanted = float(task.head("reward", params, vector)[0, 0])
      np.testing.assert_allclose(rewards[row, group, k], wanted, rtol=1e-4, atol=1e-5)
      size = float(np.asarray(batch["weights"][row])[own].sum())
      groups.setdefault((row, group), []).append((wanted, size))
    else:
      assert rewards[row, group, k] == 0
  means = jax.jit(lambda params: task.loss(params, {}, {}, batch)[0])(params)
  pairs = [list(itertools.combinations(group, 2)) for group in groups.values()]
  assert sorted(map(len, pairs)) == [1, 3, 3]

  def average(function):
    return np.mean([np.mean([function(better, worse) for better, worse in own]) for own in pairs])

  loss = average(lambda better, worse: -math.log(sigmoid(better[0] - worse[0])))
  np.testing.assert_allclose(means["loss"].value(), loss, rtol=1e-4)
  assert float(means["loss"].count) == float(task.counts(batch)["loss"]) == 3
  np.testing.assert_allclose(means["accuracy"].value(), average(lambda a, b: float(a[0] > b[0])), rtol=1e-5)
  lengths = average(lambda a, b: 0.5 + 0.5 * np.sign(a[1] - b[1]))
  np.testing.assert_allclose(means["length_accuracy"].value(), lengths, rtol=1e-5)
