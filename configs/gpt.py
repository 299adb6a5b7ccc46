"""GPT-1: "Improving Language Understanding by Generative Pre-Training" (Radford et al., 2018).

    lmjax train --config configs/gpt.py:files='data/*.txt',tokenizer=my_tokenizer --workdir runs/gpt

12 layers, width 768, post-norm, 512 positions; 116.5 M parameters with the paper's vocabulary of 40,478. Train a
tokenizer on your text with `lmjax tokenizer train --size 40478`. 800,000 steps of 64 x 512 = 32,768 tokens. Hardware
and time of the original: 8 GPUs, a month, for 100 epochs of BooksCorpus in batches of this size. Expected: the paper's
perplexity of 18.4 on BooksCorpus, which is not public; not measured.
"""

from ml_collections import ConfigDict

from lmjax import config
from lmjax.models.decoder import PRESETS


def get_config(argument: str = "") -> ConfigDict:
  choice = config.variant(argument, files="data/*.txt", tokenizer="data/tokenizer", debug=False)
  shape = PRESETS["gpt"]
  settings = ConfigDict(
    dict(
      steps=800_000,
      batch=64,
      data=dict(
        kind="lmjax.data.objectives.causal:Text",
        length=shape["length"],
        tokenizer=dict(path=choice.tokenizer, size=shape["vocabulary"]),
        source=dict(kind="lmjax.data.sources.text:TextFiles", files=choice.files, shuffle=True, split=":99.5%"),
        validation=dict(kind="lmjax.data.sources.text:TextFiles", files=choice.files, shuffle=True, split="99.5%:"),
        workers=8,
      ),
      model=dict(kind="lmjax.models.decoder:Decoder", dtype="bfloat16", remat="none", **config.given(shape)),
      task=dict(kind="lmjax.tasks.causal_lm:CausalLM", chunk=256),
      optim=dict(peak_lr=2.5e-4, warmup=2000, final_lr_ratio=0.0, b2=0.999, weight_decay=0.01),
      evals=dict(every=1000, validation=dict(kind="lmjax.evals.perplexity:Perplexity", steps=50)),
      checkpoint=dict(every=1000),
    )
  )
  return config.debug(settings) if choice.debug else settings
