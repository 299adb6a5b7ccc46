"""Named entities with ELMo's vectors (Peters et al., 2018, sections 3.3 and 4), arXiv:1802.05365, from a saved ELMo.

    lmjax train --config configs/elmo_ner.py:start=...,train=train.conll,validation=dev.conll --workdir runs/ner
    lmjax predict --workdir runs/ner --best --input sentences.txt

start: the run folder of an ELMo, or a bilm-tf folder. Its layers are mixed with learned weights, and a bidirectional
LSTM on the mix is trained; the model is frozen, but for the variant `trained`. train, validation: files with a word and
its tag in each line, such as WNUT17's (Derczynski et al., 2017), the default.

Dropout of 0.5, a penalty of 0.001 on the weights of the mix and Adam at 0.001 as in the paper, with a linear tagger
instead of its conditional random field; --config.model.depth=0 leaves the character CNN alone. Hardware: one CPU core
with configs/elmo.py:size=small. Time: 9 minutes. Expected: entity F1 0.047 on WNUT17, 0.074 of the CNN (one seed): that
ELMo has read novels only. An ELMo of the original size is not measured.
"""

from ml_collections import ConfigDict

from lmjax import config
from lmjax.models.elmo import PRESETS
from lmjax.storage.section import model_section


def get_config(argument: str = "") -> ConfigDict:
  choice = config.variant(
    argument, start="", train="data/wnut17/wnut17train.conll", validation="data/wnut17/emerging.dev.conll",
    trained=False, debug=False,
  )  # fmt: skip
  start = "" if choice.debug else choice.start
  # The model reads characters, so that the words of another vocabulary have vectors, too.
  kept = config.given(model_section(start, dropout=0.1, dtype="float32")) if start else {}
  source = dict(kind="lmjax.data.sources.conll:Conll")
  settings = ConfigDict(
    dict(
      steps=1000,
      batch=32,
      start=dict(path=start),
      data=dict(
        kind="lmjax.data.objectives.tagging:Tagging",
        length=128,
        buckets=(32, 48, 64),
        tokenizer=dict(kind="lmjax.data.tokenizers.words:WordTokenizerConfig", size=10_000),
        source=dict(files=choice.train, **source),
        validation=dict(files=choice.validation, **source),
      ),
      model=kept or dict(kind="lmjax.models.elmo:ELMo", **PRESETS["elmo-small"]),
      task=dict(kind="lmjax.tasks.bilstm_tagging:BiLSTMTagging", dropout=0.5, cells=200, mix_penalty=0.001),
      optim=dict(peak_lr=1e-3, b2=0.999, schedule="linear", warmup=50, final_lr_ratio=0.0, weight_decay=0.0,
                 frozen=() if choice.trained else ("^model/",)),
      evals=dict(every=100, dev=dict(kind="lmjax.evals.entity_f1:EntityF1")),
      checkpoint=dict(every=100, metric="-dev_f1", keep=1),
      log=dict(every=20),
    )
  )  # fmt: skip
  return config.debug(settings) if choice.debug else settings
