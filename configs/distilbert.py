"""DistilBERT: a distilled version of BERT (Sanh et al., 2019), arXiv:1910.01108.

    lmjax train --config configs/distilbert.py:teacher=...,files='data/*.txt' --workdir runs/distilbert

6 of BERT's 12 layers, without pooler and types of tokens, start from the teacher's: 66,362,880 of 109,482,240
parameters. Loss weights 5 (soft targets at temperature 2), 2 (masked LM) and 1 (cosine of the last hidden states);
positions stay as they are. Two things differ from the authors' code: soft targets are those of masked tokens, not of
all, and tokens are masked at random, not the rare ones more often.

teacher: a folder of a BERT with its masked-LM head. Hardware: the paper took 90 hours on eight V100 GPUs. Time and
expected result: not measured.
"""

from ml_collections import ConfigDict

from lmjax import config
from lmjax.models.encoder import PRESETS
from lmjax.storage.section import model_section

LAYERS = {12: (0, 2, 4, 7, 9, 11)}  # of the teacher, as in the authors' code; of another depth every second one


def get_config(argument: str = "") -> ConfigDict:
  choice = config.variant(argument, teacher="", files="data/*.txt", dtype="float32", debug=False)
  if choice.teacher:
    model = model_section(choice.teacher, dtype="float32")
  else:
    model = dict(kind="lmjax.models.encoder:Encoder", **config.given(PRESETS["bert-base"]))
  layers = LAYERS.get(model["depth"], tuple(range(0, model["depth"], 2)))
  text = dict(kind="lmjax.data.sources.text:TextFiles", files=choice.files)
  settings = ConfigDict(
    dict(
      steps=200_000,
      batch=256,
      start=dict(path=choice.teacher, layers=layers) if choice.teacher else {},
      data=dict(
        kind="lmjax.data.objectives.masked_lm:SentencePairs",
        length=512,
        max_predictions=77,
        next_sentence=False,
        tokenizer=dict(algorithm="wordpiece", path=choice.teacher, size=model.get("vocabulary", 30522)),
        source=dict(split=":99%", **text),
        validation=dict(split="99%:", **text),
      ),
      model=model | dict(depth=len(layers), token_types=0, pooler=False, dropout=0.1),
      task=dict(
        kind="lmjax.tasks.distill:Distill",
        task=dict(kind="lmjax.tasks.masked_lm:MaskedLM"),
        teacher=dict(path=choice.teacher, dtype=choice.dtype),
        temperature=2.0,
        soft_weight=5.0,
        hard_weight=2.0,
        hidden_weight=1.0,
        layer_map=(*[-1] * (len(layers) - 1), model["depth"] - 1),
      ),
      optim=dict(
        peak_lr=5e-4, schedule="linear", warmup=10_000, weight_decay=0.0, b2=0.98, epsilon=1e-6, frozen=("positions",)
      ),
      evals=dict(every=5000, validation=dict(kind="lmjax.evals.validation_loss:ValidationLoss", steps=100)),
      checkpoint=dict(every=5000),
    )
  )
  return config.debug(settings) if choice.debug else settings
