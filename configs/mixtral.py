"""Mixtral: "Mixtral of Experts" (Jiang et al., 2024), arXiv:2401.04088.

    lmjax train --config configs/mixtral.py:size=8x7b,files='data/*.txt',tokenizer=data/mixtral --workdir runs/mixtral

size: 8x7b (46.7 B parameters, of which a token uses 12.9 B; vocabulary 32,000) or 8x22b (140.6 and 39.2 B; vocabulary
32,768). Each layer has 8 experts, and a router chooses 2 for each token. `tokenizer` is a folder with tokenizer.model.
The paper says neither how many tokens the model has read nor how it was trained: batch, learning rate and steps are
those of configs/llama.py, and 0.02 for the load-balancing loss is that of the published 8x7b. Rows of 4,096 tokens; the
published models read 32,768 and 65,536. Hardware: see benchmarks/notes/pods.md. Time: see `lmjax plan`. Expected:
`max_load` in the log falls towards 1, where all experts of a layer are used alike; not measured at this size.
"""

from ml_collections import ConfigDict

from lmjax import config
from lmjax.models.expert_decoder import PRESETS


def get_config(argument: str = "") -> ConfigDict:
  choice = config.variant(argument, size=("8x7b", "8x22b"), files="data/*.txt", tokenizer="data/mixtral", debug=False)
  shape = PRESETS[f"mixtral-{choice.size}"]
  settings = ConfigDict(
    dict(
      steps=500_000,
      batch=4_194_304 // shape["length"],
      mesh=dict(data=1, fsdp=-1),
      rules="fsdp",
      data=dict(
        kind="lmjax.data.objectives.causal:Text",
        length=shape["length"],
        tokenizer=dict(path=choice.tokenizer, size=shape["vocabulary"]),
        source=dict(kind="lmjax.data.sources.text:TextFiles", files=choice.files, shuffle=True, split=":99.5%"),
        validation=dict(kind="lmjax.data.sources.text:TextFiles", files=choice.files, shuffle=True, split="99.5%:"),
        workers=8,
      ),
      model=dict(
        kind="lmjax.models.expert_decoder:ExpertDecoder", dtype="bfloat16", remat="full", **config.given(shape)
      ),
      task=dict(kind="lmjax.tasks.expert_lm:ExpertLM", chunk=256),
      optim=dict(peak_lr=3e-4, warmup=2000, b2=0.95, weight_decay=0.1),
      evals=dict(every=1000, validation=dict(kind="lmjax.evals.perplexity:Perplexity", steps=50)),
      checkpoint=dict(every=1000),
    )
  )
  return config.debug(settings) if choice.debug else settings
