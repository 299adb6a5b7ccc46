"""lm-evaluation-harness with lmjax's models: the scores of lmjax's suites and of the harness's own model."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from lmjax import storage
from lmjax.inference import suite as suites
from tests.conftest import ROOT
from tests.evals.test_lm_eval import BASE, TASKS, docs, folder  # noqa: F401

pytestmark = [
  pytest.mark.torch,
  pytest.mark.filterwarnings("ignore"),
  pytest.mark.skipif(not importlib.util.find_spec("lm_eval"), reason="needs lm-eval: pip install 'lmjax[eval]'"),
]

ANSWERS = {"answers": dict(
  output_type="generate_until", doc_to_text="Q: {{question}}", doc_to_target="{{a}}",
  generation_kwargs={"until": ["the"], "max_gen_toks": 8, "do_sample": False},
)}  # fmt: skip
METRICS = {
  "multiple_choice": ["acc", "acc_norm"], "loglikelihood": ["perplexity", "acc"],
  "loglikelihood_rolling": ["word_perplexity", "byte_perplexity", "bits_per_byte"],
  "generate_until": ["exact_match", "bleu", "chrf"],
}  # fmt: skip
CHOSEN = {name: TASKS[name] for name in ("zero_shot", "few_shot", "last_word", "rolling")} | ANSWERS


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
  """A folder of YAML tasks (JSON is YAML) and their data."""
  path = tmp_path_factory.mktemp("tasks")
  (path / "test.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs(6)))
  for name, fields in CHOSEN.items():
    task = BASE | {"task": name, "dataset_kwargs": {"data_files": {"test": str(path / "test.jsonl")}}} | fields
    task["metric_list"] = [{"metric": metric} for metric in METRICS[task["output_type"]]]
    (path / f"{name}.yaml").write_text(json.dumps(task))
  return path


def harness(output, tasks, model, model_args, script=("-m", "lmjax.inference.harness")):
  """Returns (results, samples by task) of a command of the harness, which has no network."""
  arguments = ["--model", model, "--model_args", model_args, "--tasks", ",".join(CHOSEN), "--include_path", str(tasks),
               "--output_path", str(output), "--log_samples"]  # fmt: skip
  env = os.environ | {
    "HF_HUB_OFFLINE": "1", "HF_HOME": str(output / "home"), "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT),
    "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9",
  }  # fmt: skip
  process = subprocess.run(
    [sys.executable, *script, *arguments], cwd=tasks, env=env, capture_output=True, text=True, timeout=300
  )
  assert process.returncode == 0, process.stderr[-3000:]
  (results,) = output.rglob("results_*.json")
  samples = {}
  for name in CHOSEN:
    (file,) = output.rglob(f"samples_{name}_*.jsonl")
    samples[name] = sorted(map(json.loads, file.read_text().splitlines()), key=lambda sample: sample["doc_id"])
  return json.loads(results.read_text())["results"], samples


def responses(sample):
  """Returns what a model answered to the requests of an item: numbers, or a string."""
  first = [r[0][0] if isinstance(r[0], list) else r[0] for r in sample["resps"]]
  return first if len(first) == 1 and not _is_number(first[0]) else [float(value) for value in first]


def _is_number(value):
  try:
    float(value)
  except ValueError:
    return False
  return True


@pytest.mark.long
def test_the_harness_runs_lmjax(folder, tasks, tmp_path):  # noqa: F811
  """All kinds of requests: the samples and the scores of its own model, and those of lmjax's suites."""
  results, samples = harness(tmp_path / "lmjax", tasks, "lmjax", f"workdir={folder}")
  own = f"pretrained={folder},dtype=float32"
  theirs, their_samples = harness(tmp_path / "hf", tasks, "hf", own, ("-m", "lm_eval"))
  loaded = storage.open(folder).load()
  for name in CHOSEN:
    for sample, wanted in zip(samples[name], their_samples[name], strict=True):
      if name == "answers":
        assert responses(sample) == responses(wanted)
      else:
        np.testing.assert_allclose(responses(sample), responses(wanted), rtol=1e-4)
    chosen = suites.Suite(suites.choose(str(tasks / f"{name}.yaml")), tmp_path / name)
    scores = suites.evaluate(loaded, chosen)["tasks"][name]["metrics"]
    assert set(scores) == set(METRICS[CHOSEN[name].get("output_type", "multiple_choice")])
    for metric, score in scores.items():
      value, wanted = results[name][f"{metric},none"], theirs[name][f"{metric},none"]
      np.testing.assert_allclose([value, score["value"]], wanted, rtol=1e-4, err_msg=f"{name} {metric}")
  assert all(len(set(map(str, samples[name]))) > 1 for name in CHOSEN)


def test_the_entry_point_names_the_model():
  """As setup.py declares it; and importing lmjax's commands and suites imports neither the harness nor torch."""
  module, name = "lmjax.inference.harness", "HarnessModel"
  assert f'"lm_eval.models": ["lmjax = {module}:{name}"]' in (ROOT / "setup.py").read_text()
  check = (
    "import sys, importlib, lmjax.commands.evaluate, lmjax.inference.suite\n"
    "assert not {'torch', 'lm_eval', 'transformers'} & set(sys.modules)\n"
    f"model = getattr(importlib.import_module({module!r}), {name!r})\n"
    "from lm_eval.api.model import LM\nassert issubclass(model, LM)\n"
  )
  subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True, timeout=100)
