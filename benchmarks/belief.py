"""A small decoder learns false beliefs from generated stories, and is asked about others.

    python benchmarks/belief.py --output beliefs
    lmjax train --config benchmarks/belief.py:folder=beliefs --workdir runs/beliefs
    lmjax evaluate --workdir runs/beliefs --suite beliefs/held_out.yaml --output beliefs/results
    lmjax evaluate --workdir runs/beliefs --suite beliefs_stories --output beliefs/suite

Stories of orders 1 to 3 with their twins (lmjax/evals/suites/beliefs.py), as many of each. No combination of two
people, a place, two containers and a thing that is held out, or that the suite `beliefs_stories` has, is trained on.
A suite that measures beliefs must give this model a high score, and gives a constant answer 0. Time and expected
result: see benchmarks/README.md.
"""

import argparse
import json
import pathlib
import random
import re

from ml_collections import ConfigDict

from lmjax import config
from lmjax.evals.suites import beliefs

TEXT = "{story}\nQuestion: {question}\nAnswer: {answer}"  # the prompt of the suite, and the right answer
TASK = """include: {tasks}/_beliefs.yaml
task: held_out
dataset_path: json
dataset_kwargs: {{data_files: {{test: held_out.jsonl}}}}
test_split: test
"""


def combination(doc: beliefs.Doc) -> tuple[str, ...]:
  """Returns who, where and what a story is about: its people, its place, its containers and its thing."""
  names = re.match(r"(\w+) and (\w+) (?:are in the (\w+)|have a).* puts (?:the (\w+)|a)", doc["story"])
  return (*names.groups(default=""), *sorted(doc["choices"])) if names else ()


def write(folder: pathlib.Path, pairs: int = 20_000, others: int = 300, seed: int = 1) -> None:
  """Writes train.jsonl with pairs of stories, held_out.jsonl with others, and held_out.yaml."""
  rng = random.Random(seed)
  known = {combination(doc) for doc in beliefs.stories()}
  held_out: list[beliefs.Doc] = []
  trained: list[str] = []
  while len(trained) < 2 * pairs:
    number = len(held_out) // 2 if len(held_out) < 2 * others else others + len(trained) // 2
    pair = beliefs.pair(rng, beliefs.ORDERS[number % len(beliefs.ORDERS)], f"story {number}")
    if len(held_out) < 2 * others:
      held_out += pair
      known.add(combination(pair[0]))
    elif combination(pair[0]) not in known:
      trained += [TEXT.format(**doc, answer=doc["choices"][doc["gold"]]) for doc in pair]
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in trained))
  (folder / "held_out.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in held_out))
  (folder / "held_out.yaml").write_text(TASK.format(tasks=pathlib.Path(beliefs.__file__).parent / "tasks"))


def get_config(argument: str = "") -> ConfigDict:
  choice = config.variant(argument, folder="beliefs", debug=False)
  lines = dict(kind="lmjax.data.sources.records:JsonLines", files=f"{choice.folder}/train.jsonl")
  settings = ConfigDict(
    dict(
      steps=600,
      batch=32,
      data=dict(
        kind="lmjax.data.objectives.causal:Text",
        length=128,
        packing="first_fit",
        tokenizer=dict(algorithm="bpe", size=512),
        source=lines | dict(split=":99%"),
        validation=lines | dict(split="99%:"),
      ),
      model=dict(
        kind="lmjax.models.decoder:Decoder",
        width=128, depth=3, heads=4, kv_heads=4, head_size=32, mlp=512, scan=False,
      ),
      task=dict(kind="lmjax.tasks.causal_lm:CausalLM"),
      optim=dict(optimizer="muon", peak_lr=1e-2, warmup=50, weight_decay=0.1),
      evals=dict(every=200, validation=dict(kind="lmjax.evals.perplexity:Perplexity")),
      checkpoint=dict(every=200),
    )
  )  # fmt: skip
  return config.debug(settings) if choice.debug else settings


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--output", type=pathlib.Path, required=True, help="a folder for the stories")
  write(parser.parse_args().output)
