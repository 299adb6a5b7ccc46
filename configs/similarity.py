"""Sentence-BERT (Reimers and Gurevych, 2019), arXiv:1908.10084: vectors of sentences whose cosine is their similarity.

    lmjax train --config configs/similarity.py:start=...,train=stsb-en-train.csv,validation=stsb-en-dev.csv \
      --workdir runs/similarity
    lmjax embed --workdir runs/similarity --best --input sentences.txt --output vectors.npz

start: a run folder, a Hugging Face folder or a GGUF file; the model and its tokenizer are taken from it. train,
validation: pairs of sentences with a similarity from 0 to 5, as STS-B has them (Cer et al., 2017): GLUE's train.tsv and
dev.tsv, or CSV files without names of columns. The two sentences are read apart; the objective is the regression of
section 3.1, with the paper's batch of 16, four epochs, and 10 % warm-up.

Hardware: two CPU cores with all-MiniLM-L6-v2 (22.7 M parameters). Time: 17 minutes on one of them, beside other work.
Expected: Spearman 0.8946 ± 0.0004 on STS-B's dev set (three seeds); 0.867 without training.
"""

from ml_collections import ConfigDict

from lmjax import config
from lmjax.storage.section import model_section, tokenizer_section

EXAMPLES = 5749  # of STS-B's training data


def get_config(argument: str = "") -> ConfigDict:
  choice = config.variant(
    argument, start="", train="data/glue/stsb/train.tsv", validation="data/glue/stsb/dev.tsv", debug=False
  )
  start = "" if choice.debug else choice.start
  if start:
    model = model_section(start, dropout=0.1, pooler=False, decoder_depth=0, tie_embeddings=True, dtype="float32")
  else:
    model = dict(kind="lmjax.models.encoder:Encoder", width=384, depth=6, heads=12, head_size=32, mlp=1536,
                 pooler=False, dropout=0.1)  # fmt: skip
  steps = 4 * EXAMPLES // 16

  def source(path: str) -> dict:
    names = dict(text="sentence1", other="sentence2", label="score")
    if path.endswith(".csv"):
      names = dict(header=False, text="0", other="1", label="2")
    return dict(kind="lmjax.data.sources.labelled:Table", files=path, **names)

  settings = ConfigDict(
    dict(
      steps=steps,
      batch=16,
      start=dict(path=start),
      data=dict(
        kind="lmjax.data.objectives.similarity:Similarity",
        length=256,
        buckets=(32, 48, 64, 96, 128),
        tokenizer=tokenizer_section(start, model, algorithm="wordpiece", size=8192),
        source=source(choice.train),
        validation=source(choice.validation),
      ),
      model=model,
      task=dict(kind="lmjax.tasks.similarity:Similarity", highest=5.0),
      optim=dict(
        peak_lr=2e-5 if start else 1e-4,
        b2=0.999,
        schedule="linear",
        warmup=steps // 10,
        weight_decay=0.01,
        final_lr_ratio=0.0,
      ),
      evals=dict(
        every=steps // 8,
        dev=dict(kind="lmjax.evals.task_metrics:TaskMetrics", metrics=("spearman", "pearson")),
      ),
      checkpoint=dict(every=steps // 8, metric="-dev_spearman", keep=1),
      log=dict(every=20),
    )
  )
  return config.debug(settings) if choice.debug else settings
