"""Policies that compare several answers to a prompt: GRPO, RLOO, Dr. GRPO, DAPO, GSPO; see lmjax.tasks.rl.grpo.

    lmjax train --config configs/grpo.py:start=...,function=my_rewards:solved,files='data/*.jsonl' --workdir runs/grpo
    lmjax train --config configs/grpo.py:start=...,reward=...,method=rloo,files='data/*.jsonl' --workdir runs/rloo

start: a run folder, a Hugging Face folder or a GGUF file, as which the policy and the reference start. function: a
Python function of the text of a prompt and of its answer, as module:name, for what can be verified. reward: a run of
configs/reward.py with the same tokenizer, added to it. files: JSON lines or lists with prompts, see
lmjax.data.sources.prompts; 5 % are held out. Without them, a small model from scratch is rewarded for answers of small
letters, to try the code.

Hardware: two CPU cores for a small model. Time and expected result: not measured yet; the reward rises, and `varied`
falls where all answers to a prompt are right or all are wrong.
"""

from ml_collections import ConfigDict

from lmjax import config
from lmjax.storage.section import model_section, tokenizer_section

METHODS = {
  "grpo": dict(kl=0.04),
  "rloo": dict(baseline="leave_one_out", scale=False, average="constant", kl=0.05, kl_in="reward"),
  "dr_grpo": dict(scale=False, average="constant"),
  "dapo": dict(average="token", clip_high=0.28, skip_equal=True, overlong_tokens=16),
  "gspo": dict(level="sequence", clip=3e-4, clip_high=4e-4),
}


def get_config(argument: str = "") -> ConfigDict:
  choice = config.variant(
    argument, files="data/*.jsonl", start="", reward="", function="", template="", method=tuple(METHODS), debug=False
  )
  start = "" if choice.debug else choice.start
  if start:
    model = model_section(start, dropout=0.0, dtype="float32")
  else:
    model = dict(kind="lmjax.models.decoder:Decoder", width=320, depth=6, heads=5, kv_heads=5, head_size=64, mlp=1280)
  rewards = []
  if choice.reward and not choice.debug:
    rewards.append(dict(kind="lmjax.tasks.rl.rewards:ModelReward", path=choice.reward))
  if choice.function and not choice.debug:
    rewards.append(dict(kind="lmjax.tasks.rl.rewards:FunctionReward", function=choice.function))
  letters = dict(kind="lmjax.tasks.rl.rewards:PatternReward", pattern="[a-z ]")
  source = dict(kind="lmjax.data.sources.prompts:JsonPrompts", files=choice.files, shuffle=True)
  settings = ConfigDict(
    dict(
      steps=200,
      batch=8,
      start=dict(path=start),
      data=dict(
        kind="lmjax.data.objectives.prompts:Prompts",
        length=192,
        prompt_tokens=128,
        template=choice.template,
        tokenizer=tokenizer_section(start, model, algorithm="bpe", size=4096),
        source=source | dict(split=":95%"),
        validation=source | dict(split="95%:"),
      ),
      model=model,
      task=dict(
        kind="lmjax.tasks.rl.grpo:GRPO",
        reference=start or "none",
        rewards=rewards or [letters],
        samples=8,
        minibatches=2,
      )
      | METHODS[choice.method],
      optim=dict(peak_lr=1e-6 if start else 1e-4, b2=0.99, schedule="constant", warmup=10),
      evals=dict(every=40, policy=dict(kind="lmjax.evals.policy:PolicyReward")),
      checkpoint=dict(every=40),
      log=dict(every=4),
    )
  )
  return config.debug(settings) if choice.debug else settings
