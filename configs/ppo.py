"""Proximal policy optimization against a reward model: step 3 of InstructGPT (Ouyang et al., 2022), arXiv:2203.02155.

    lmjax train --config configs/ppo.py:start=...,reward=...,files='data/*.jsonl' --workdir runs/ppo

start: a run folder, a Hugging Face folder or a GGUF file, as which the policy and the reference start. reward: a run of
configs/reward.py with the same tokenizer. files: JSON lines or lists with prompts, see lmjax.data.sources.prompts; 5 %
are held out. Without start and reward, a small model from scratch is rewarded for answers of small letters, to try the
code. A Python function of prompt and answer takes the place of the reward model, or is added to it:
--config.task.rewards="[{'kind': 'lmjax.tasks.rl.rewards:FunctionReward', 'function': 'module:name'}]".

preset: small has the values of a small decoder on two CPU cores; instructgpt those of the paper's appendix C.4: 512
prompts a rollout, in minibatches of 64, one inner epoch, kl 0.02, 256,000 episodes, a moving average of 0.992, rewards
normalised by the first rollout, and -1 for an answer without an end; its rate of 9e-6 was chosen for models of 1.3 to
175 B parameters. With reward=... its value function is a network that starts as the reward model, which has then the
policy's shape. text='pile/*.txt', in either preset, adds the paper's pretraining mix (PPO-ptx): -27.8 log p, the mean
over the tokens of a row of text for each prompt; the paper has eight.

Hardware: two CPU cores for a small model. Time and expected result: not measured yet; the first ratio is 1, and the
reward rises while kl, of a whole answer, stays bounded.
"""

from ml_collections import ConfigDict

from lmjax import config
from lmjax.storage.section import model_section, tokenizer_section

PRESETS = {
  "small": dict(
    steps=200,
    batch=32,
    task=dict(minibatches=2, epochs=2, kl=0.05, decay=0.95),
    optim=dict(peak_lr=1e-5, b2=0.999, schedule="constant", warmup=10),
  ),
  "instructgpt": dict(
    steps=4000,
    batch=512,
    task=dict(minibatches=8, epochs=1, kl=0.02, decay=0.95, clip=0.2, value_clip=0.2, normalise=True, unfinished=-1.0),
    optim=dict(peak_lr=9e-6, b2=0.95, schedule="constant", warmup=10, ema=0.992),
  ),
}


def get_config(argument: str = "") -> ConfigDict:
  choice = config.variant(
    argument, files="data/*.jsonl", start="", reward="", template="", text="", preset=tuple(PRESETS), debug=False
  )
  start = "" if choice.debug else choice.start
  preset = PRESETS[choice.preset]
  if start:
    model = model_section(start, dropout=0.0, dtype="float32")
  else:
    model = dict(kind="lmjax.models.decoder:Decoder", width=320, depth=6, heads=5, kv_heads=5, head_size=64, mlp=1280)
  if choice.reward and not choice.debug:
    reward = dict(kind="lmjax.tasks.rl.rewards:ModelReward", path=choice.reward)
    value = "reward" if choice.preset == "instructgpt" else "head"
  else:
    reward, value = dict(kind="lmjax.tasks.rl.rewards:PatternReward", pattern="[a-z ]"), "head"
  source = dict(kind="lmjax.data.sources.prompts:JsonPrompts", files=choice.files, shuffle=True)
  data = dict(kind="lmjax.data.objectives.prompts:Prompts")
  if choice.text:
    text = dict(kind="lmjax.data.sources.text:TextFiles", files=choice.text, shuffle=True)
    data = dict(kind="lmjax.data.objectives.prompts_with_text:PromptsWithText", text=text)
  settings = ConfigDict(
    dict(
      steps=preset["steps"],
      batch=preset["batch"],
      start=dict(path=start),
      data=data
      | dict(
        length=192,
        prompt_tokens=128,
        template=choice.template,
        tokenizer=tokenizer_section(start, model, algorithm="bpe", size=4096),
        source=source | dict(split=":95%"),
        validation=source | dict(split="95%:"),
      ),
      model=model,
      task=dict(
        kind="lmjax.tasks.rl.ppo:PPO",
        reference=start or "none",
        rewards=[reward],
        value=value,
        pretraining=27.8 if choice.text else 0.0,
      )
      | preset["task"],
      optim=preset["optim"],
      evals=dict(every=40, policy=dict(kind="lmjax.evals.policy:PolicyReward")),
      checkpoint=dict(every=40),
      log=dict(every=4),
    )
  )
  return config.debug(settings) if choice.debug else settings
