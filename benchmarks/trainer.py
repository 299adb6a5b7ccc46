"""transformers' Trainer on a task of configs/glue.py: the same model, examples and hyper-parameters, several seeds.

    python benchmarks/trainer.py --config configs/glue.py:task=mrpc,start=... --seeds 0:3 --workdir runs/trainer-mrpc

Compare with `lmjax seeds` of the same config. Rows are grouped by length, as `group_by_length` does. Finished seeds are
not repeated; the report is in WORKDIR/seeds.json.
"""

import json
import sys
import time

import numpy as np
import torch
import transformers
from etils import epath

from lmjax import config as configs
from lmjax import experiment as experiments
from lmjax.commands.options import new_parser, parse_overrides
from lmjax.commands.seeds import parse_seeds, summarize
from lmjax.evals.task_metrics import CLASSES, NUMBERS


def main(arguments: list[str]) -> None:
  parser = new_parser("trainer", __doc__)
  parser.add_argument("--config", required=True)
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--seeds", default="0:3")
  parser.add_argument("--random", action="store_true", help="random weights of the same architecture")
  options, overrides = parse_overrides(parser, arguments)
  workdir, results = epath.Path(options.workdir), {}
  settings = configs.load(options.config, overrides)
  for seed in parse_seeds(options.seeds):
    kept = workdir / f"{seed}.json"
    if not kept.exists():
      workdir.mkdir(parents=True, exist_ok=True)
      kept.write_text(json.dumps(run(settings | {"seed": seed}, workdir / str(seed), options.random)))
    results[seed] = json.loads(kept.read_text())
  report = summarize(results, settings["checkpoint"]["metric"])
  (workdir / "seeds.json").write_text(json.dumps(report, indent=2) + "\n")
  for name, (mean, deviation) in report["metrics"].items():
    print(f"{name} {mean:.4f} ± {deviation:.4f}")


def run(settings: dict, folder: epath.Path, random: bool) -> dict[str, float]:
  """Trains with one seed; returns the scores of the best checkpoint, and `seconds` of the whole training."""
  experiment = experiments.build(settings)
  data, optim, start = experiment.data, experiment.optimizer, settings["start"]["path"]
  classes = len(data.labels) or 1
  train, dev = ([row(data, experiment.tokenizer, source[i]) for i in range(len(source))]
                for source in (data.source, data.validation))  # fmt: skip
  transformers.set_seed(settings["seed"])
  shape = transformers.AutoConfig.from_pretrained(start, num_labels=classes)
  new = transformers.AutoModelForSequenceClassification
  model = new.from_config(shape) if random else new.from_pretrained(start, config=shape)
  metric = settings["checkpoint"]["metric"].removeprefix("-").removeprefix("dev_")

  def scores(prediction) -> dict[str, float]:
    logits, true = prediction.predictions, prediction.label_ids
    guess = logits.argmax(axis=1) if data.labels else logits[:, 0]
    known = CLASSES if data.labels else NUMBERS
    return {name: float(known[name](true, guess)) for name in experiment.evaluators["dev"].metrics}

  every = experiment.evaluate_every
  arguments = transformers.TrainingArguments(
    output_dir=str(folder), max_steps=settings["steps"], per_device_train_batch_size=settings["batch"],
    per_device_eval_batch_size=settings["batch"], learning_rate=optim.peak_lr, lr_scheduler_type="linear",
    warmup_steps=optim.warmup, weight_decay=optim.weight_decay, adam_beta1=optim.b1, adam_beta2=optim.b2,
    adam_epsilon=optim.epsilon, max_grad_norm=optim.clip, seed=settings["seed"], eval_strategy="steps",
    eval_steps=every, save_strategy="steps", save_steps=every, save_total_limit=1, load_best_model_at_end=True,
    metric_for_best_model=metric, greater_is_better=True, train_sampling_strategy="group_by_length",
    report_to=[], logging_steps=every, use_cpu=not torch.cuda.is_available(), disable_tqdm=True,
  )  # fmt: skip
  trainer = transformers.Trainer(
    model=model, args=arguments, train_dataset=train, eval_dataset=dev, data_collator=collate, compute_metrics=scores
  )
  began = time.perf_counter()
  trainer.train()
  seconds = time.perf_counter() - began
  result = {key.replace("eval_", "dev_"): value for key, value in trainer.evaluate().items()}
  wanted = experiment.evaluators["dev"].metrics
  result = {f"dev_{name}": result[f"dev_{name}"] for name in wanted} | {"seconds": seconds}
  if data.labels:
    true = np.array([example["labels"] for example in dev])
    majority = np.full_like(true, np.bincount(true).argmax())
    result |= {f"dev_majority_{name}": float(CLASSES[name](true, majority)) for name in wanted}
  return result


def row(data, tokenizer, example) -> dict:
  """Returns the arrays of one example, without padding."""
  arrays = data.arrangement(tokenizer)(example.text, example.other)
  label = list(data.labels).index(example.label) if data.labels else float(example.label)
  return {"input_ids": arrays["inputs"].tolist(), "token_type_ids": arrays["token_types"].tolist(), "labels": label}


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
  """Returns a batch of rows, padded to the longest of them."""
  longest = max(len(row["input_ids"]) for row in rows)

  def padded(key):
    return torch.tensor([row[key] + [0] * (longest - len(row[key])) for row in rows])

  batch = {key: padded(key) for key in ("input_ids", "token_type_ids")}
  real = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
  return batch | {"attention_mask": torch.tensor(real), "labels": torch.tensor([row["labels"] for row in rows])}


if __name__ == "__main__":
  main(sys.argv[1:])
