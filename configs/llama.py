"""Llama: "Llama 2" (Touvron et al., 2023), arXiv:2307.09288; "The Llama 3 Herd of Models" (2024), arXiv:2407.21783.

    lmjax train --config configs/llama.py:size=7b,files='data/*.txt',tokenizer=data/llama2 --workdir runs/llama

size: 7b (Llama 2: vocabulary 32,000, length 4,096) or 8b (Llama 3: vocabulary 128,256, length 8,192, grouped-query
attention). `tokenizer` is a folder with tokenizer.model (7b) or tokenizer.json (8b). 500,000 steps of 4 M tokens, 2 T
tokens in total. Hardware: a v5e-256 or larger. Time: see `lmjax plan`. Expected: the Llama 2 paper's figure 5, a
training loss of about 1.75 nats per token after 2 T tokens; not measured.
"""

from ml_collections import ConfigDict

from lmjax import config
from lmjax.models.decoder import PRESETS

SIZES = {"7b": "llama2-7b", "8b": "llama3-8b"}


def get_config(argument: str = "") -> ConfigDict:
  choice = config.variant(argument, size=tuple(SIZES), files="data/*.txt", tokenizer="data/llama", debug=False)
  shape = PRESETS[SIZES[choice.size]]
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
      model=dict(kind="lmjax.models.decoder:Decoder", dtype="bfloat16", remat="full", **config.given(shape)),
      task=dict(kind="lmjax.tasks.causal_lm:CausalLM", chunk=256),
      optim=dict(peak_lr=3e-4, warmup=2000, b2=0.95, weight_decay=0.1),
      evals=dict(every=1000, validation=dict(kind="lmjax.evals.perplexity:Perplexity", steps=50)),
      checkpoint=dict(every=1000),
    )
  )
  return config.debug(settings) if choice.debug else settings
