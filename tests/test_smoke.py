"""Every config builds and takes a debug step; the commands work together."""

import json
import sys
import types

import jax
import pytest

from lmjax import config, experiment
from lmjax.__main__ import main
from lmjax.parallel.sharding import use_layout
from lmjax.testing import fake_batch
from lmjax.train import make_step
from tests.conftest import ROOT

VARIANTS = [
  "gpt", "quickstart", "shakespeare_char", "text", "lstm", "lstm:size=large", "elmo", "elmo:size=original", "scan",
  "llama:size=7b", "llama:size=8b", "mixtral:size=8x7b", "mixtral:size=8x22b",
  "transformer:size=base", "transformer:size=big", "transformer:multi30k",
  *(f"bert:size={size}" for size in ("mini", "tiny", "small", "medium", "base", "large")),
  *(f"gpt2:size={size}" for size in ("124m", "355m", "774m", "1558m")),
  *(f"gpt3:size={size}" for size in ("125m", "350m", "760m", "1.3b", "2.7b", "6.7b", "13b", "175b")),
  *(f"t5:size={size}" for size in ("mini", "small", "base", "large", "3b", "11b")),
  *(f"t5:size=v1_1-{size}" for size in ("small", "base", "large", "xl", "xxl")), "t5:size=mini,consecutive",
  "sft", "dpo", "dpo:loss=ipo", "dpo:loss=simpo", "orpo", "kto", "reward",
  "distill", "distilbert", "lottery",
  "ppo", "ppo:preset=instructgpt", "ppo:text=x",
  *(f"grpo:method={name}" for name in ("grpo", "rloo", "dr_grpo", "dapo", "gspo")),
  "images", "images:digits=mnist,vision=2", "scenes",
  "glue", "glue:task=stsb", "glue_text", "glue_text:task=stsb", "similarity", "superglue", "superglue:task=wsc",
  "ner", "elmo_ner", "squad", "retriever", "fusion_in_decoder",
]  # fmt: skip
# The sizes of a family share all their code: these take the step, of the others the state is built.
STEPPED = (
  "gpt", "quickstart", "shakespeare_char", "text", "lstm", "elmo:size=original", "scan", "llama:size=7b",
  "mixtral:size=8x7b",
  "transformer:size=base", "gpt2:size=124m", "bert:size=mini", "t5:size=mini", "t5:size=v1_1-small",
  "glue", "similarity", "ner", "elmo_ner", "squad", "images", "retriever", "fusion_in_decoder",
)  # fmt: skip


def test_no_config_is_left_out():
  assert {path.stem for path in (ROOT / "configs").glob("*.py")} == {name.split(":")[0] for name in VARIANTS}


@pytest.mark.parametrize("name", [n if n in STEPPED else pytest.param(n, marks=pytest.mark.long) for n in VARIANTS])
def test_every_config_builds_and_takes_a_debug_step(name):
  file, _, choice = name.partition(":")
  full = config.load(f"configs/{file}.py:{choice}")
  assert full["steps"] > 20
  settings = config.load(f"configs/{file}.py:{choice},debug")
  run = experiment.build(settings)
  if name not in STEPPED:
    run.state(abstract=True)
    return
  with use_layout(run.layout):
    step = jax.jit(make_step(run.task, run.optimizer.build(run.steps), run.transform))
    _, metrics = step(run.state(), fake_batch(run.task, run.batch, run.data.length), jax.random.key(0))
  assert bool(metrics["finite"])


@pytest.mark.long
@pytest.mark.parametrize("family", ["gpt,lm=0.5", "bert", "t5", "elmo", "lstm"])
def test_between_families_only_the_model_differs(family):
  settings, bert = (config.load(f"benchmarks/one_task.py:family={name},debug") for name in (family, "bert"))
  assert {key for key in bert if settings[key] != bert[key]} <= {"model"} | ({"task"} if "lm" in family else set())
  experiment.build(settings).state(abstract=True)


def test_train_then_generate_then_read(lmjax, tmp_path):
  run = tmp_path / "run"
  lmjax("train", "--config", "configs/quickstart.py:debug", "--workdir", run)
  summary = json.loads((run / "summary.json").read_text())
  wanted = (
    "parameters", "steps", "tokens", "train_loss", "validation_loss", "validation_bits_per_byte", "seconds",
    "tokens_per_second",
  )  # fmt: skip
  assert all(summary[key] is not None for key in wanted)
  assert summary["steps"] == 20 and "energy_method" in summary
  assert set(summary["time"]) == {"compile", "data", "step", "evaluation", "saving"}
  assert {"loss.png", "tensorboard", "config.json", "tokenizer", "checkpoints"} <= {p.name for p in run.iterdir()}
  lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
  losses = {line["step"]: line["train_loss"] for line in lines if "train_loss" in line}
  assert sorted(losses) == list(range(1, 21)) and losses[20] < losses[1]

  output = lmjax("train", "--config", "configs/quickstart.py:debug", "--workdir", run).stdout
  assert "is finished" in output and json.loads((run / "summary.json").read_text()) == summary
  wrong = lmjax(
    "train", "--config", "configs/quickstart.py:debug", "--workdir", run, "--config.model.mlp=8", check=False
  )
  assert wrong.returncode == 2 and "config.model.mlp was 128 and is 8" in wrong.stderr

  alone = lmjax("generate", "--workdir", run, "--prompt", "Return", "--max_new_tokens", 8, "--temperature", 0)
  assert alone.stdout.startswith("Return") and len(alone.stdout) > 8
  prompts, output = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
  prompts.write_text('{"prompt": "Return"}\nThe class\n')
  lmjax(
    "generate", "--workdir", run, "--prompts_file", prompts, "--output", output, "--num_samples", 2, "--batch", 3,
    "--max_new_tokens", 8, "--temperature", 0, "--dtype", "float32",
  )  # fmt: skip
  rows = [json.loads(line) for line in output.read_text().splitlines()]
  assert [row["prompt"] for row in rows] == ["Return", "Return", "The class", "The class"]
  assert "Return" + rows[0]["text"] == alone.stdout.rstrip("\n"), "in a batch as alone"

  (tmp_path / "my.txt").write_text("Hello Hello Hello é")
  made = tmp_path / "made"
  lmjax("tokenizer", "train", "--algorithm", "characters", "--files", tmp_path / "my.txt", "--output", made)
  assert lmjax("tokenizer", "encode", "--path", made, "Hello").stdout == "1 2 3 3 4\n"

  ids = lmjax("tokenizer", "encode", "--path", run, "Hello é").stdout.strip()
  assert lmjax("tokenizer", "decode", "--path", run, *ids.split()).stdout == "Hello é\n"


@pytest.mark.long
def test_a_relative_run_folder(lmjax, tmp_path):
  lmjax("train", "--config", ROOT / "configs/quickstart.py:debug", "--workdir", "runs/quick", cwd=tmp_path)
  assert (tmp_path / "runs" / "quick" / "checkpoints" / "20").is_dir()
  assert (
    len(lmjax("generate", "--workdir", "runs/quick", "--prompt", "A", "--max_new_tokens", 4, cwd=tmp_path).stdout) > 1
  )


@pytest.mark.slow
def test_debugging_options(lmjax, tmp_path):
  """Operation by operation, stopping at the first NaN, with a trace of two steps."""
  arguments = ("train", "--config", "configs/quickstart.py:debug", "--config.steps=2", "--workdir")
  lmjax(*arguments, tmp_path / "eager", env={"JAX_DISABLE_JIT": "1"})
  assert (tmp_path / "eager" / "summary.json").exists()
  lmjax(*arguments, tmp_path / "traced", "--profile", "1:2")
  assert list((tmp_path / "traced" / "profile").rglob("*.xplane.pb"))
  broken = ("--debug_nans", "--config.optim.peak_lr=1e30", "--config.optim.clip=0", "--config.steps=9")
  process = lmjax(*arguments, tmp_path / "nan", *broken, check=False)
  assert process.returncode == 2 and "invalid value (nan)" in process.stderr and process.stderr.count("\n") == 1


def test_wandb_gets_the_lines_of_metrics_jsonl(tmp_path, monkeypatch, capsys):
  """Against a fake: the real one needs an account."""
  calls = []

  class Run:
    log = staticmethod(lambda metrics, step: calls.append((step, metrics)))
    finish = staticmethod(lambda: calls.append("finished"))

  wandb = types.SimpleNamespace(init=lambda **options: calls.append(options) or Run)
  monkeypatch.setitem(sys.modules, "wandb", wandb)
  arguments = ["train", "--config", "configs/quickstart.py:debug", "--config.steps=3", "--config.log.wandb=project"]
  assert main([*arguments, "--workdir", str(tmp_path / "run")]) == 0
  assert calls[0]["project"] == "project" and calls[0]["config"]["steps"] == 3 and calls[-1] == "finished"
  lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
  assert [(line.pop("step"), line) for line in lines] == calls[1:-1]
  monkeypatch.setitem(sys.modules, "wandb", None)
  assert main([*arguments, "--workdir", str(tmp_path / "other")]) == 2
  assert "pip install 'lmjax[wandb]'" in capsys.readouterr().err


def test_an_encoder_trains_and_does_not_generate(tmp_path, capsys):
  run = str(tmp_path / "run")
  assert main(["train", "--config", "configs/bert.py:debug", "--config.steps=4", "--workdir", run]) == 0
  lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
  assert {"masked_lm", "next_sentence", "masked_accuracy", "next_accuracy"} <= set(lines[0])
  assert lines[0]["train_loss"] == pytest.approx(lines[0]["masked_lm"] + lines[0]["next_sentence"], rel=1e-5)
  assert main(["generate", "--workdir", run, "--prompt", "x"]) == 2
  assert "Encoder models cannot generate text" in capsys.readouterr().err
