"""Supervised fine-tuning of a decoder on dialogues and instructions: step 1 of InstructGPT (Ouyang et al., 2022).

    lmjax train --config configs/sft.py:start=...,files='data/*.jsonl' --workdir runs/sft
    lmjax train --config configs/sft.py:start=...,files='data/*.jsonl' --workdir runs/sft-lora \
      --config.transform.kind=lmjax.compression.lora:LoRA --config.transform.rank=16 --config.optim.peak_lr=2e-4
    lmjax train --config configs/sft.py:files='data/*.jsonl' --workdir runs/small

files: JSON lines or lists, see lmjax.data.sources.dialogues; 5 % are held out. start: a run
folder, a Hugging Face folder or a GGUF file, whose tokenizer and chat template are used; without it, a model of 9 M
parameters and a tokenizer are trained from scratch. lora: train factors of rank 16 of all kernels instead of the model.

The loss covers what the assistant writes. Three epochs of 1,000 dialogues: set steps to 3 x dialogues / 32 for more.
Hardware: two CPU cores for the small model. Time and expected result: not measured yet.
"""

from ml_collections import ConfigDict

from lmjax import config
from lmjax.storage.section import model_section, tokenizer_section


def get_config(argument: str = "") -> ConfigDict:
  choice = config.variant(argument, files="data/*.jsonl", start="", template="", debug=False)
  start = "" if choice.debug else choice.start
  if start:
    model = model_section(start, dropout=0.0, dtype="float32")
  else:
    model = dict(kind="lmjax.models.decoder:Decoder", width=320, depth=6, heads=5, kv_heads=5, head_size=64, mlp=1280)
  source = dict(kind="lmjax.data.sources.dialogues:JsonDialogues", files=choice.files, shuffle=True)
  settings = ConfigDict(
    dict(
      steps=100,
      batch=8,
      start=dict(path=start),
      data=dict(
        kind="lmjax.data.objectives.dialogues:Dialogues",
        length=512,
        template=choice.template,
        tokenizer=tokenizer_section(start, model, algorithm="bpe", size=4096),
        source=source | dict(split=":95%"),
        validation=source | dict(split="95%:"),
      ),
      model=model,
      task=dict(kind="lmjax.tasks.causal_lm:CausalLM"),
      optim=dict(peak_lr=2e-5 if start else 1e-3, b2=0.999, schedule="cosine", warmup=10),
      evals=dict(every=25, validation=dict(kind="lmjax.evals.perplexity:Perplexity")),
      checkpoint=dict(every=25),
      log=dict(every=5),
    )
  )  # fmt: skip
  return config.debug(settings) if choice.debug else settings
