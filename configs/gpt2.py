"""GPT-2: "Language Models are Unsupervised Multitask Learners" (Radford et al., 2019).

    lmjax train --config configs/gpt2.py:size=124m,files='data/*.txt',tokenizer=data/gpt2 --workdir runs/gpt2

size: 124m 355m 774m 1558m. `tokenizer` is a folder with OpenAI's encoder.json and vocab.bpe, or one that you trained.
600,000 steps of 480 x 1,024 = 491,520 tokens, 295 B tokens in total. Hardware: 124m on one GPU or a v5e-8. Time and
expected result of 124m, from nanoGPT's reproduction on OpenWebText: about four days on 8 A100s, 2.85 nats per token of
validation text; not measured.
"""

from ml_collections import ConfigDict

from lmjax import config
from lmjax.models.decoder import PRESETS

SIZES = ("124m", "355m", "774m", "1558m")


def get_config(argument: str = "") -> ConfigDict:
  choice = config.variant(argument, size=SIZES, files="data/*.txt", tokenizer="data/gpt2", debug=False)
  shape = PRESETS[f"gpt2-{choice.size}"]
  settings = ConfigDict(
    dict(
      steps=600_000,
      batch=480,
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
      model=dict(kind="lmjax.models.decoder:Decoder", dtype="bfloat16", remat="none", **config.given(shape)),
      task=dict(kind="lmjax.tasks.causal_lm:CausalLM", chunk=256),
      optim=dict(peak_lr=6e-4, warmup=2000, b2=0.95, weight_decay=0.1),
      evals=dict(every=1000, validation=dict(kind="lmjax.evals.perplexity:Perplexity", steps=50)),
      checkpoint=dict(every=1000),
    )
  )
  return config.debug(settings) if choice.debug else settings
