"""What a policy answers to held-out prompts, and how the rewards judge it beside the reference model."""

import dataclasses

import jax
import numpy as np

from lmjax.evals.base import Context, Measure
from lmjax.logs import console
from lmjax.tasks.rl.policy import Policy
from lmjax.utils.errors import UserError, one_line
from lmjax.utils.pytree import Tree


@dataclasses.dataclass(frozen=True)
class PolicyReward:
  """The reward of answers to held-out prompts, and the win rate over the answers of the reference model.

    win_rate = fraction of prompts whose answer gets more reward than the reference's, ties count one half

  The judge is the reward that the policy was trained on, so a high win rate shows that it is optimised, not that
  answers are better. Answers are sampled as in training, one to each prompt, with the same seeds at every evaluation
  and for the reference. prompts: how many. dialogues: how many of them are printed at each evaluation.
  """

  prompts: int = 64
  dialogues: int = 2

  def prepare(self, context: Context) -> Measure:
    if not isinstance(context.task, Policy):
      raise UserError("evals: PolicyReward needs a task that writes answers, such as lmjax.tasks.rl.ppo:PPO")
    task = context.task
    rows = min(self.prompts, len(context.data.validation))
    (batch,) = context.data.validate(context.tokenizer, rows, 1)
    there = batch["weights"].any(axis=1)
    batch = {key: batch[key][there] for key in task.reads(1, 1) if key in batch}
    reference: list[np.ndarray] = []  # rewards of its answers, once known
    rng = jax.random.key(0)

    def measure(params: Tree) -> dict[str, float]:
      rollout = task.rollout(params, batch, rng, 1)
      scores, parts = task.score(context.frozen, rollout, len(rollout.answers))
      scores = task.final_scores(scores, rollout)
      assert task.text is not None
      means = {f"reward{name.removeprefix('reward')}": value for name, value in parts.items()}
      means |= {"reward": float(scores.mean()), "answer_tokens": float(rollout.mask.sum(axis=1).mean())}
      means["finished"] = float(rollout.finished(task.text.ends).mean())
      model = task.reference_model(params, context.frozen)
      if model is not None:
        if not reference:
          own = dataclasses.replace(task, model=model[0].model).rollout(model[1], batch, rng, 1)
          reference.append(task.final_scores(task.score(context.frozen, own, len(own.answers))[0], own))
        means["win_rate"] = float(np.mean((scores > reference[0]) + 0.5 * (scores == reference[0])))
        means["reward_gain"] = float(np.mean(scores - reference[0]))
      if jax.process_index() == 0:
        for (prompt, answer), score in list(zip(task.texts(rollout), scores, strict=True))[: self.dialogues]:
          console.print(f"  {one_line(prompt, 200)!r} -> {one_line(answer, 300)!r} (reward {score:.3f})")
      return means

    return measure
