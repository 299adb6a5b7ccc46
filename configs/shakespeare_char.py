"""Tiny Shakespeare by characters: the CPU recipe of karpathy/nanoGPT (config/train_shakespeare_char.py, its README).

    lmjax train --config configs/shakespeare_char.py:file=input.txt --workdir runs/shakespeare

file: nanoGPT's `input.txt` of 1.1 MB; its first 90 % are for training. 4 layers, width 128, windows of 64
characters, 2,000 steps of 12 windows = 1.5 M characters. Hardware: two CPU cores. Time: 67 to 98 seconds. Expected: at
most 1.90 nats per character over the whole validation text; see benchmarks/README.md.
"""

from ml_collections import ConfigDict

from lmjax import config


def get_config(argument: str = "") -> ConfigDict:
  choice = config.variant(argument, file="data/lm_tinyshakespeare/input.txt", debug=False)
  text = dict(kind="lmjax.data.sources.text:TextFiles", files=choice.file, chunk_bytes=1024)
  settings = ConfigDict(
    dict(
      steps=2000,
      batch=12,
      data=dict(
        kind="lmjax.data.objectives.causal:Text",
        length=64,
        packing="windows",
        tokenizer=dict(algorithm="characters"),
        source=dict(split=":90%", **text),
        validation=dict(split="90%:", **text),
      ),
      model=dict(
        kind="lmjax.models.decoder:Decoder",
        width=128, depth=4, heads=4, kv_heads=4, head_size=32, mlp=512, activation="gelu_tanh", bias=False, scan=False,
      ),
      task=dict(kind="lmjax.tasks.causal_lm:CausalLM", packed=False),
      optim=dict(peak_lr=1e-3, warmup=100, b2=0.99, weight_decay=0.1),
      evals=dict(every=0, validation=dict(kind="lmjax.evals.perplexity:Perplexity")),
      checkpoint=dict(every=0),
      log=dict(every=50),
    )
  )  # fmt: skip
  return config.debug(settings) if choice.debug else settings
