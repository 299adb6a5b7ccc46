"""A small GPT on the documentation that ships with Python: the config to run first.

    lmjax train --config configs/quickstart.py --workdir runs/quickstart

4 layers of width 192, 250 steps of 16 x 256 tokens. Hardware: two CPU cores. Time: three minutes. Expected: 1.85 bits
per byte of validation text with the documentation of Python 3.11, below the 2.02 of a bigram model, which the run
computes; see benchmarks/README.md.
"""

from ml_collections import ConfigDict

from lmjax import config


def get_config(argument: str = "") -> ConfigDict:
  choice = config.variant(argument, debug=False)
  settings = ConfigDict(
    dict(
      steps=250,
      batch=16,
      data=dict(
        kind="lmjax.data.objectives.causal:Text",
        length=256,
        tokenizer=dict(algorithm="bpe", size=2048),
        source=dict(kind="lmjax.data.sources.python_docs:PythonDocs", split=":95%"),
        validation=dict(kind="lmjax.data.sources.python_docs:PythonDocs", split="95%:"),
      ),
      model=dict(
        kind="lmjax.models.decoder:Decoder",
        width=192, depth=4, heads=6, kv_heads=6, head_size=32, mlp=768, activation="relu", scan=False,
      ),
      task=dict(kind="lmjax.tasks.causal_lm:CausalLM"),
      optim=dict(optimizer="muon", peak_lr=1e-2, warmup=20, weight_decay=0.1),
      evals=dict(
        every=125,
        validation=dict(kind="lmjax.evals.perplexity:Perplexity"),
        baseline=dict(kind="lmjax.evals.baselines.ngrams:Ngrams"),
      ),
      checkpoint=dict(every=125),
    )
  )  # fmt: skip
  return config.debug(settings) if choice.debug else settings
