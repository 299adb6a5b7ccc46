"""Suites beside lm-evaluation-harness with its own model of transformers: prompts, log-likelihoods and choices."""

import importlib.util
import json

import numpy as np
import pytest

from lmjax import storage
from lmjax.inference import suite as suites
from tests.storage.test_gguf import make_tokenizer, write_folder

pytestmark = [
  pytest.mark.torch,
  pytest.mark.filterwarnings("ignore"),
  pytest.mark.skipif(not importlib.util.find_spec("lm_eval"), reason="needs lm-eval: pip install lm-eval"),
]

END = "<|endoftext|>"
TOKENIZER = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END, "eos_token": END}
COLOURS = ["red", "green", "blue", "dark", "light"]
WORDS = [*COLOURS, "one", "two", "three", "the", "a", "of", "is", "it", "was", "colour", "and", "more"]


def docs(count=9, seed=0):
  rng = np.random.default_rng(seed)

  def words(least=1):
    return " ".join(rng.choice(WORDS, int(rng.integers(least, 9))))

  return [
    {"question": words(2) + ("  " if i % 4 == 3 else ""), "a": words(), "b": words(), "c": words(), "gold": i % 3}
    for i in range(count)
  ]


CHOICES = "{{[a, b, c]}}"
BASE = {"dataset_path": "json", "test_split": "test", "output_type": "multiple_choice"}
TASKS = {
  "zero_shot": dict(doc_to_text="Q: {{question}}", doc_to_target="gold", doc_to_choice=CHOICES),
  "few_shot": dict(doc_to_text="{{question}}\nAnswer:", doc_to_target="gold", doc_to_choice=CHOICES, num_fewshot=2,
                   fewshot_split="test", description="Colours of things.\n\n"),
  "sentences": dict(doc_to_text="", doc_to_target="{{gold}}", doc_to_choice=CHOICES, target_delimiter=""),
  "contexts": dict(doc_to_text="gold", doc_to_target="question", doc_to_choice=CHOICES),
  "last_word": dict(output_type="loglikelihood", doc_to_text="{{question.split(' ')[:-1]|join(' ')}}",
                    doc_to_target="{{' ' + question.split(' ')[-1]}}"),
  "rolling": dict(output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="{{(question + ' ' + a) * 6}}"),
}  # fmt: skip
METRICS = {"loglikelihood": ["perplexity", "acc"], "loglikelihood_rolling": ["word_perplexity", "bits_per_byte"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A tiny random Llama of 64 positions as transformers' and lmjax's folder."""
  folder = tmp_path_factory.mktemp("model") / "hf"
  write_folder(folder, "llama", make_tokenizer(), length=64)
  (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER))
  return folder


@pytest.fixture(scope="module")
def evaluated(folder, tmp_path_factory):
  """All tasks: the harness's results, those of lmjax, and its folder of results."""
  model, folder = folder, tmp_path_factory.mktemp("suite")
  (folder / "test.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs()))
  data = {"dataset_kwargs": {"data_files": {"test": str(folder / "test.jsonl")}}}
  tasks = [BASE | {"task": name} | data | task for name, task in TASKS.items()]
  for task in tasks:
    task["metric_list"] = [{"metric": metric} for metric in metrics_of(task)]
    (folder / f"{task['task']}.yaml").write_text(json.dumps(task))
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("HF_HOME", str(folder / "home"))
    patch.setenv("HF_HUB_OFFLINE", "1")
    import datasets
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM

    patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder / "cache"))
    harness = HFLM(pretrained=str(model), device="cpu", dtype="float32", batch_size=4)
    theirs = evaluator.simple_evaluate(harness, tasks=tasks, bootstrap_iters=0)
  loaded = storage.open(model).load()
  chosen = [task for name in TASKS for task in suites.choose(str(folder / f"{name}.yaml"))]
  return theirs, suites.evaluate(loaded, suites.Suite(chosen, folder / "out")), folder / "out"


def metrics_of(task):
  return METRICS.get(task["output_type"], ["acc", "acc_norm"])


@pytest.mark.parametrize("name", TASKS)
def test_items_are_those_of_lm_eval(name, evaluated):
  """The same requests, log-likelihoods to 1e-4 relative, the same choices, and the same scores."""
  theirs, lmjax, output = evaluated
  metrics = metrics_of(BASE | TASKS[name])
  records = [json.loads(line) for line in (output / f"{name}.jsonl").read_text().splitlines()[1:]]
  samples = {sample["doc_id"]: sample for sample in theirs["samples"][name]}
  assert len(records) == len(samples) == 9
  for record in records:
    sample = samples[record["item"]]
    wanted = [r[0][0] if isinstance(r[0], list | tuple) else r[0] for r in sample["resps"]]
    wanted = [float(value[0] if isinstance(value, list | tuple) else value) for value in wanted]
    values = record.get("log_likelihoods", [record.get("log_likelihood")])
    np.testing.assert_allclose(values, wanted, rtol=1e-4)
    assert "log_likelihoods" not in record or record["predicted"] == np.argmax(wanted)
    for metric in {"acc", "acc_norm"} & set(metrics):
      assert record[metric] == sample[metric]
  for metric in metrics:
    score = lmjax["tasks"][name]["metrics"][metric]["value"]
    np.testing.assert_allclose(score, theirs["results"][name][f"{metric},none"], rtol=1e-4)
