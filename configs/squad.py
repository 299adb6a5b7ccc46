"""SQuAD (Rajpurkar et al., 2016 and 2018), arXiv:1606.05250 and 1806.03822: answers as spans, from saved weights.

    lmjax train --config configs/squad.py:start=...,train=train-v1.1.json,validation=dev-v1.1.json --workdir runs/squad
    lmjax predict --workdir runs/squad --best --input questions.jsonl

start: a run folder, a Hugging Face folder or a GGUF file. train, validation: files in SQuAD's JSON format, 1.1 or 2.0.
answerable: every question has an answer, as in SQuAD 1.1; without, the first token says that there is none, as in 2.0.
articles: the part of the articles of `train` to train on, such as `:80%`; the others are validated on if there is no
file for that. steps: 5,500 of 32 rows are two epochs of SQuAD 1.1, as in Devlin et al. (2019, section 4.2). Hardware:
one accelerator. Time and expected result: SQuAD not measured; XQuAD's 632 questions from all-MiniLM-L6-v2, 200 steps of
2e-4 for each of five folds, F1 0.408 (without `answerable`; see benchmarks/README.md).
"""

from ml_collections import ConfigDict

from lmjax import config
from lmjax.storage.section import model_section, tokenizer_section


def get_config(argument: str = "") -> ConfigDict:
  choice = config.variant(
    argument,
    start="",
    train="data/squad/train-v1.1.json",
    validation="",
    articles=":80%",
    steps="5500",
    answerable=False,
    debug=False,
  )
  start = "" if choice.debug else choice.start
  if start:
    model = model_section(start, dropout=0.1, pooler=False, decoder_depth=0, tie_embeddings=True, dtype="float32")
  else:
    model = dict(kind="lmjax.models.encoder:Encoder", width=384, depth=6, heads=12, head_size=32, mlp=1536,
                 pooler=False, dropout=0.1)  # fmt: skip
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
        kind="lmjax.data.objectives.spans:Spans",
        length=384,
        overlap=128,
        answerable=choice.answerable,
        tokenizer=tokenizer_section(start, model, algorithm="wordpiece", size=8192),
        source=train | source,
        validation=validation | source,
      ),
      model=model,
      task=dict(kind="lmjax.tasks.spans:SpanExtraction"),
      optim=dict(peak_lr=5e-5, b2=0.999, schedule="linear", warmup=steps // 10, final_lr_ratio=0.0, weight_decay=0.01),
      evals=dict(every=max(steps // 5, 1), dev=dict(kind="lmjax.evals.answers:AnswerMetrics")),
      checkpoint=dict(every=max(steps // 5, 1), metric="-dev_f1", keep=1),
      log=dict(every=20),
    )
  )
  return config.debug(settings) if choice.debug else settings
