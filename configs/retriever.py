"""Dense retrieval (Karpukhin et al., 2020), arXiv:2004.04906: an encoder finds the paragraph that answers a question.

    lmjax train --config configs/retriever.py:start=...,train=train-v1.1.json,validation=dev-v1.1.json \
      --workdir runs/retriever
    lmjax index --files 'docs/**' --workdir runs/retriever --output indexes/docs

start: a run folder, a Hugging Face folder or a GGUF file. train, validation: files in SQuAD's JSON format. articles:
the part of the articles of `train` to train on, such as `:80%`; the others are for validation if there is no file.
negatives: hard ones of each question, by BM25 (pip install 'lmjax[retrieval]'). The paper has batches of 128 questions
with one hard negative, 40 epochs, and a rate of 1e-5 for BERT-Base, without normalised vectors (task.normalize=False,
task.temperature=1.0). Hardware: two CPU cores for a small encoder, 15 minutes for 48 steps. Expected result: see
benchmarks/notes/retrieval.md.
"""

from ml_collections import ConfigDict

from lmjax import config
from lmjax.storage.section import model_section, tokenizer_section


def get_config(argument: str = "") -> ConfigDict:
  choice = config.variant(
    argument, start="", train="data/squad/train-v1.1.json", validation="", articles=":80%", negatives="1", steps="100",
    debug=False,
  )  # fmt: skip
  start = "" if choice.debug else choice.start
  if start:
    model = model_section(start, dropout=0.0, pooler=False, decoder_depth=0, tie_embeddings=True, dtype="float32")
  else:
    model = dict(kind="lmjax.models.encoder:Encoder", width=384, depth=6, heads=12, head_size=32, mlp=1536,
                 pooler=False, dropout=0.0)  # fmt: skip
  steps, source = int(choice.steps), dict(kind="lmjax.data.sources.squad:Squad")
  train = dict(files=choice.train, split="" if choice.validation else choice.articles)
  rest = f"{choice.articles.lstrip(':')}:"
  validation = dict(files=choice.validation) if choice.validation else dict(files=choice.train, split=rest)
  settings = ConfigDict(
    dict(
      steps=steps,
      batch=32,
      start=dict(path=start),
      data=dict(
        kind="lmjax.data.objectives.retrieval:Retrieval",
        length=512,
        question_length=48,
        negatives=int(choice.negatives),
        tokenizer=tokenizer_section(start, model, algorithm="wordpiece", size=8192),
        source=train | source,
        validation=validation | source,
      ),
      model=model,
      task=dict(kind="lmjax.tasks.retrieval:Retrieval", temperature=0.05),
      optim=dict(
        peak_lr=2e-5 if start else 1e-4,
        b2=0.999,
        schedule="linear",
        warmup=steps // 10,
        weight_decay=0.01,
        final_lr_ratio=0.0,
      ),
      evals=dict(every=max(steps // 4, 1), validation=dict(kind="lmjax.evals.validation_loss:ValidationLoss")),
      checkpoint=dict(every=max(steps // 4, 1), metric="-validation_accuracy", keep=1),
      log=dict(every=5),
    )
  )
  return config.debug(settings) if choice.debug else settings
