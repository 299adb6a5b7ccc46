"""GPT-3: "Language Models are Few-Shot Learners" (Brown et al., 2020), arXiv:2005.14165, with dense attention.

    lmjax train --config configs/gpt3.py:size=1.3b,files='data/*.txt',tokenizer=data/gpt2 --workdir runs/gpt3

size: 125m 350m 760m 1.3b 2.7b 6.7b 13b 175b, with the peak learning rates and batch sizes (in tokens) of the paper's
table 2.1, and 300 B tokens for each. 1.3b has 16 heads of size 128, because the table's 24 heads do not divide its
width; 13b has width 5,120 instead of 5,140. Hardware: 1.3b on a v5e-16 or larger, 175b on a v5p-1024. Time: see `lmjax
plan`. Expected: the paper's figure 3.1, a validation loss of 2.57 C^-0.048 for C petaflop/s-days; not measured.
"""

from ml_collections import ConfigDict

from lmjax import config
from lmjax.models.decoder import PRESETS

TABLE = {  # peak learning rate, sequences of 2,048 tokens in a batch
  "125m": (6e-4, 256), "350m": (3e-4, 256), "760m": (2.5e-4, 256), "1.3b": (2e-4, 512),
  "2.7b": (1.6e-4, 512), "6.7b": (1.2e-4, 1024), "13b": (1e-4, 1024), "175b": (6e-5, 1536),
}  # fmt: skip


def get_config(argument: str = "") -> ConfigDict:
  choice = config.variant(argument, size=tuple(TABLE), files="data/*.txt", tokenizer="data/gpt2", debug=False)
  peak_lr, batch = TABLE[choice.size]
  shape = PRESETS[f"gpt3-{choice.size}"]
  settings = ConfigDict(
    dict(
      steps=300_000_000_000 // (batch * 2048),
      batch=batch,
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
      optim=dict(peak_lr=peak_lr, warmup=375_000_000 // (batch * 2048), b2=0.95, weight_decay=0.1),
      evals=dict(every=1000, validation=dict(kind="lmjax.evals.perplexity:Perplexity", steps=50)),
      checkpoint=dict(every=1000),
    )
  )
  return config.debug(settings) if choice.debug else settings
