"""GLUE as text to text: an encoder-decoder writes the label (Raffel et al., 2020, arXiv:1910.10683, appendix D).

    lmjax train --config configs/glue_text.py:task=sst2,start=... --workdir runs/sst2-text
    lmjax generate --workdir runs/sst2-text --best --prompt "sst2 sentence: a film that works"

task, data: as in configs/glue.py, whose files, recipe and metrics these are, with the prefixes of T5; numbers of STS-B
are rounded to 0.2, also those of the dev set. start: a run
folder or a Hugging Face folder of an encoder-decoder such as T5; the model and its tokenizer are taken from it. What
is none of the labels counts as a wrong one. Hardware: two CPU cores with T5-small. Time and expected result: not
measured.
"""

from ml_collections import ConfigDict

from lmjax import config
from lmjax.storage.section import model_section, tokenizer_section

TEMPLATES = {
  "sst2": "sst2 sentence: {text}",
  "cola": "cola sentence: {text}",
  **{name: f"{name} sentence1: {{text}} sentence2: {{other}}" for name in ("mrpc", "stsb", "rte", "wnli")},
  "qqp": "qqp question1: {text} question2: {other}",
  "mnli": "mnli hypothesis: {other} premise: {text}",
  "qnli": "qnli question: {text} sentence: {other}",
}


def get_config(argument: str = "") -> ConfigDict:
  choice = config.variant(argument, task=tuple(TEMPLATES), start="", data="", debug=False)
  start = "" if choice.debug else choice.start
  as_classes = config.load(f"configs/glue.py:task={choice.task},data={choice.data}")
  if start:
    model = model_section(start, dropout=0.1, dtype="float32")
  else:
    model = dict(
      kind="lmjax.models.encoder_decoder:EncoderDecoder", width=256, depth=4, heads=4, head_size=64, mlp=1024
    )
  data, dev = as_classes["data"], as_classes["evals"]["dev"]
  pairs = dict(kind="lmjax.data.sources.as_text:AsText", template=TEMPLATES[choice.task],
               rounded=0.2 if choice.task == "stsb" else 0.0)  # fmt: skip
  settings = ConfigDict(
    {key: as_classes[key] for key in ("steps", "batch", "optim", "checkpoint", "log")}
    | dict(
      start=dict(path=start),
      data=dict(
        kind="lmjax.data.objectives.seq2seq:TextToText",
        length=data["length"],
        target_length=16,
        tokenizer=tokenizer_section(start, model, algorithm="unigram", size=8192),
        source=pairs | dict(examples=data["source"]),
        validation=pairs | dict(examples=data["validation"]),
      ),
      model=model,
      task=dict(kind="lmjax.tasks.seq2seq:Seq2Seq"),
      evals=dict(
        every=as_classes["evals"]["every"],
        dev=dict(
          kind="lmjax.evals.generated_labels:GeneratedLabels",
          metrics=("accuracy",) if choice.debug else dev["metrics"],
          labels=() if choice.debug else data["labels"],
        ),
      ),
    )
  )
  if choice.debug:
    settings.checkpoint.metric = "-dev_accuracy"
  return config.debug(settings) if choice.debug else settings
