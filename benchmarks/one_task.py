"""One task, five families (Devlin et al., 2019; Peters et al., 2018; Radford et al., 2018; Raffel et al., 2020).

    lmjax seeds --config benchmarks/one_task.py:family=bert,train=train.tsv,dev=dev.tsv --workdir runs/bert

family: gpt bert t5 elmo lstm, each of about 1.5 million parameters and from random weights; nothing but the section
`model` differs. train, dev: tables with the columns `sentence` and `label`, such as SST-2's (Socher et al., 2013).
lm: weight of the auxiliary loss of a gpt, language modelling, 0.5 in Radford et al. (2018, section 3.2).

Hardware: two CPU cores. Time and expected result: see benchmarks/README.md. It is not among the configs, since it
names the code of five models.
"""

from ml_collections import ConfigDict

from lmjax import config

LAYERS = dict(width=128, heads=4, head_size=32, mlp=512, dropout=0.1)
FAMILIES = {
  "gpt": dict(kind="lmjax.models.decoder:Decoder", depth=3, kv_heads=4, **LAYERS),
  "bert": dict(kind="lmjax.models.encoder:Encoder", depth=3, **LAYERS),
  "t5": dict(kind="lmjax.models.encoder_decoder:EncoderDecoder", depth=2, decoder_depth=1, **LAYERS),
  "elmo": dict(
    kind="lmjax.models.elmo:ELMo", width=128, cells=192, filters=((1, 16), (2, 16), (3, 32), (4, 64)), highways=1,
    dropout=0.1,
  ),
  "lstm": dict(kind="lmjax.models.recurrent:Recurrent", width=128, cells=192, depth=2, dropout=0.1),
}  # fmt: skip


def get_config(argument: str = "") -> ConfigDict:
  choice = config.variant(
    argument, family=("bert", *(name for name in FAMILIES if name != "bert")), train="data/glue/sst2/train.tsv",
    dev="data/glue/sst2/dev.tsv", lm="0", debug=False,
  )  # fmt: skip
  table = dict(kind="lmjax.data.sources.labelled:Table", text="sentence", label="label")
  settings = ConfigDict(
    dict(
      steps=1000,
      batch=32,
      data=dict(
        kind="lmjax.data.objectives.labelled:Labelled",
        length=64,
        buckets=(16, 32),
        tokenizer=dict(kind="lmjax.data.tokenizers.words:WordTokenizerConfig", size=8000),
        source=dict(files=choice.train, **table),
        validation=dict(files=choice.dev, **table),
      ),
      model=dict(FAMILIES[choice.family]),
      task=dict(kind="lmjax.tasks.classification:Classification", lm_weight=float(choice.lm)),
      optim=dict(peak_lr=1e-3, b2=0.999, schedule="linear", warmup=100, final_lr_ratio=0.0, weight_decay=0.01),
      evals=dict(every=200, dev=dict(kind="lmjax.evals.task_metrics:TaskMetrics")),
      checkpoint=dict(every=200, metric="-dev_accuracy", keep=1),
      log=dict(every=50),
    )
  )
  return config.debug(settings) if choice.debug else settings
