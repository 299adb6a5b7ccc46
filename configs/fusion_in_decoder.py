"""Fusion-in-Decoder (Izacard and Grave, 2021), arXiv:2007.01282: an encoder-decoder answers from several paragraphs.

    lmjax train --config configs/fusion_in_decoder.py:start=...,train=train-v1.1.json,validation=dev-v1.1.json \
      --workdir runs/reader
    lmjax ask --index indexes/docs "How is a run resumed?" --workdir runs/reader

start: a run of configs/t5.py, or the folder of a T5; without it, a T5 of size mini from random weights. train,
validation: files in SQuAD's JSON format, 1.1 or 2.0; a question without an answer is one for which nothing is written.
articles: the part of the articles of `train` to train on, such as `:80%`; the others are for validation if there is no
file. negatives: paragraphs besides that of each question, by BM25 (pip install 'lmjax[retrieval]'); the paper has 100
paragraphs of 250 tokens, T5-Base and T5-Large, 10,000 steps of 64 questions with Adam at a constant 1e-4. Memory and
time grow in proportion to the paragraphs. Hardware: accelerators. Time and expected result: not measured.
"""

from ml_collections import ConfigDict

from lmjax import config
from lmjax.models.encoder_decoder import PRESETS
from lmjax.storage.section import model_section, tokenizer_section
from lmjax.utils.errors import UserError

PARAGRAPH = 256  # tokens of a question and a paragraph


def get_config(argument: str = "") -> ConfigDict:
  choice = config.variant(
    argument, start="", train="data/squad/train-v1.1.json", validation="", articles=":80%", negatives="4",
    steps="10000", debug=False,
  )  # fmt: skip
  start = "" if choice.debug else choice.start
  steps, negatives, source = int(choice.steps), int(choice.negatives), dict(kind="lmjax.data.sources.squad:Squad")
  length = PARAGRAPH * (1 + negatives)
  model = config.given(PRESETS["t5-mini"]) | dict(dropout=0.1)
  if start:
    model = model_section(start, dropout=0.1, length=length)
    if model["kind"].partition(":")[2] not in ("EncoderDecoder", "FusionInDecoder"):
      raise UserError(f"config: start={start} is not an encoder-decoder such as T5, but {model['kind']}")
  train = dict(files=choice.train, split="" if choice.validation else choice.articles)
  rest = f"{choice.articles.lstrip(':')}:"
  validation = dict(files=choice.validation) if choice.validation else dict(files=choice.train, split=rest)
  settings = ConfigDict(
    dict(
      steps=steps,
      batch=64,
      start=dict(path=start),
      data=dict(
        kind="lmjax.data.objectives.paragraphs:Paragraphs",
        length=length,
        question_length=48,
        target_length=32,
        negatives=negatives,
        tokenizer=tokenizer_section(start, model, algorithm="unigram", size=8192),
        source=train | source,
        validation=validation | source,
      ),
      model=model | dict(kind="lmjax.models.fusion_in_decoder:FusionInDecoder", paragraph=PARAGRAPH),
      task=dict(kind="lmjax.tasks.seq2seq:Seq2Seq"),
      optim=dict(peak_lr=1e-4, b2=0.999, schedule="constant", warmup=min(1000, steps // 10), weight_decay=0.0),
      evals=dict(every=max(steps // 10, 1), dev=dict(kind="lmjax.evals.written_answers:WrittenAnswers")),
      checkpoint=dict(every=max(steps // 10, 1), metric="-dev_f1", keep=1),
      log=dict(every=20),
    )
  )
  if choice.debug:
    settings = config.debug(settings)
    settings.model.paragraph = settings.data.length // 2
  return settings
