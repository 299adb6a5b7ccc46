"""Named entities in the CoNLL format, from saved weights (Devlin et al., 2019, section 5.3, arXiv:1810.04805).

    lmjax train --config configs/ner.py:start=...,train=train.conll,validation=dev.conll --workdir runs/ner
    lmjax predict --workdir runs/ner --best --input sentences.txt

start: a run folder, a Hugging Face folder or a GGUF file. train, validation: files with a word and its tag in each
line, such as WNUT17's (Derczynski et al., 2017), the default. Hardware: two CPU cores with all-MiniLM-L6-v2 (22.7 M
parameters). Time: 9 minutes on one of them. Expected: entity F1 0.57 on WNUT17's dev set.
"""

from ml_collections import ConfigDict

from lmjax import config
from lmjax.storage.section import model_section, tokenizer_section


def get_config(argument: str = "") -> ConfigDict:
  choice = config.variant(
    argument, start="", train="data/wnut17/wnut17train.conll", validation="data/wnut17/emerging.dev.conll", debug=False
  )
  start = "" if choice.debug else choice.start
  if start:
    model = model_section(start, dropout=0.1, pooler=False, decoder_depth=0, tie_embeddings=True, dtype="float32")
  else:
    model = dict(kind="lmjax.models.encoder:Encoder", width=384, depth=6, heads=12, head_size=32, mlp=1536,
                 pooler=False, dropout=0.1)  # fmt: skip
  source = dict(kind="lmjax.data.sources.conll:Conll")
  settings = ConfigDict(
    dict(
      steps=500,
      batch=32,
      start=dict(path=start),
      data=dict(
        kind="lmjax.data.objectives.tagging:Tagging",
        length=128,
        buckets=(32, 48, 64),
        tokenizer=tokenizer_section(start, model, algorithm="wordpiece", size=8192),
        source=dict(files=choice.train, **source),
        validation=dict(files=choice.validation, **source),
      ),
      model=model,
      task=dict(kind="lmjax.tasks.tagging:Tagging"),
      optim=dict(peak_lr=1e-4, b2=0.999, schedule="linear", warmup=50, final_lr_ratio=0.0, weight_decay=0.01),
      evals=dict(every=100, dev=dict(kind="lmjax.evals.entity_f1:EntityF1")),
      checkpoint=dict(every=100, metric="-dev_f1", keep=1),
      log=dict(every=20),
    )
  )
  return config.debug(settings) if choice.debug else settings
