"""What a first run meets: odd folders, the same command again, what is printed, what cannot be meant."""

import dataclasses
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import config, experiment, notebook, sections, trackers
from lmjax.__main__ import main
from lmjax.data.objectives.causal import Text
from lmjax.data.tokenizers import registry
from lmjax.evals.base import Context
from lmjax.evals.perplexity import Perplexity
from lmjax.logs import read_metrics
from lmjax.models.decoder import Config, Decoder
from lmjax.parallel.mesh import MeshShape
from lmjax.parallel.sharding import Layout, is_partitioned, use_layout
from lmjax.tasks.causal_lm import CausalLM
from lmjax.train import train
from lmjax.utils.errors import UserError
from lmjax.utils.metrics import Mean

CONFIGS = sorted(pathlib.Path("configs").glob("*.py"))
ROWS = ["the quick brown fox", "jumps over", "the lazy dog"] * 40


def write_text(folder):
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "a.txt").write_text("\n".join(ROWS) * 5)
  return folder / "a.txt"


def settings_of(text, **changes):
  made = config.load(
    f"configs/text.py:files='{text}'", {"data.tokenizer.algorithm": "bytes", "batch": "4", "data.length": "16"}
  )
  made["model"] |= {"width": 32, "depth": 1, "heads": 2, "mlp": 32, "dropout": 0.0}
  made["evals"].pop("baseline")
  made |= {"steps": 4, "checkpoint": {"every": 0}, "log": {"every": 2, "tensorboard": False, "samples": 0}}
  made["evals"] |= {"every": 2}
  made["optim"] = {"warmup": 1, "peak_lr": 1e-3}
  return made | changes


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
  """A finished run in a folder whose path has all characters of patterns, and what it printed."""
  folder = tmp_path_factory.mktemp("odd") / "[1] *?" / "**"
  text = write_text(folder)
  log = {"every": 2, "samples": 2}
  with pytest.MonkeyPatch.context() as patch:
    lines = []
    patch.setattr("builtins.print", lambda *words, **_: lines.append(" ".join(map(str, words))))
    patch.setattr("lmjax.logs.console.print", lines.append)
    made = settings_of(text, log=log, steps=7, optim={"warmup": 9, "peak_lr": 1e-3})
    assert train(made, folder / "run[2]") == 0
  return folder / "run[2]", made, lines


def test_a_folder_with_the_characters_of_patterns_works_like_any_other(odd, capsys):
  run, settings, _ = odd
  assert main(["generate", "--workdir", str(run), "--prompt", "the", "--max_new_tokens", "3"]) == 0
  assert main(["convert", "--input", str(run), "--output", str(run.parent / "hf[1]")]) == 0
  assert main(["show", str(run.parent / "hf[1]")]) == 0
  assert train(settings, run) == 0 and "is finished" in capsys.readouterr().out
  assert train(settings | {"steps": 8}, run) == 0
  assert "resumes from step 7" in capsys.readouterr().out


def test_what_a_run_prints(odd):
  """First what takes time, then the data, surprises, a line for some steps and each evaluation; then what to try."""
  run, _, lines = odd
  text = "\n".join(lines)
  assert lines[0].startswith("reading")
  wanted = ["data: ", "vocabulary of 257", "epochs in 7 steps", "parameters; 64 tokens a step", "warm-up of 9 steps"]
  wanted += [
    "compiling",
    "starts in",
    "step 2/7  loss",
    "step 2  validation:  loss",
    "sample: ",
    "step 7/7",
    "next: lmjax gen",
  ]
  places = [text.find(words) for words in wanted]
  assert places == sorted(places) and places[0] > 0, dict(zip(wanted, places, strict=True))
  columns = [line.index("perplexity") for line in lines if "validation:" in line]
  assert len(columns) == 4 and len(set(columns)) == 1
  assert [len(line["samples"]) for line in read_metrics(run, samples=True) if "samples" in line][:4] == [2] * 4
  assert all("samples" not in line for line in read_metrics(run)) and len(read_metrics(run)) > 4
  summary = json.loads((run / "summary.json").read_text())
  assert summary["finished"] and summary["steps"] in (7, 8) and (run / "loss.png").exists()


def test_tensorboard_tags_are_grouped():
  assert trackers.tags({"train_loss": 1.0, "learning_rate": 2.0}) == {"train/loss": 1.0, "train/learning_rate": 2.0}
  scores = {"validation_bits_per_byte": 1.0, "dev_f1": 2.0}
  assert trackers.tags(scores) == {"validation/bits_per_byte": 1.0, "dev/f1": 2.0}


def test_the_same_command_resumes_whatever_python_value_a_key_had(tmp_path):
  """Tuples, whole numbers and defaults are compared as config.json has them."""
  text = write_text(tmp_path)
  changes = {
    "data.source.files": f"('{text}', '{text}')",
    "optim.lr_multipliers": "{'embed': 1, 'n': 2}",
    "optim.frozen": "('norm',)",
  }

  def settings():
    made = settings_of(text, steps=2)
    for key, value in changes.items():
      config.override(made, key, value)
    return made

  for _ in range(2):
    assert train(settings(), tmp_path / "run") == 0
  plain = settings()
  plain["optim"] |= {"frozen": ("norm",), "lr_multipliers": {"embed": 1.0, "n": 2.0}}
  plain["data"]["source"]["files"] = (str(text), str(text))
  assert train(plain, tmp_path / "run") == 0


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_switch_takes_a_value(path):
  for value in ("false", "0", "no"):
    big = config.load(f"{path}:debug={value}")
    assert big == config.load(str(path)) and config.load(f"{path}:debug=true") == config.load(f"{path}:debug")
  with pytest.raises(UserError, match="debug=maybe: no such choice"):
    config.load(f"{path}:debug=maybe")


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ("import nope\ndef get_config(argument=''): return {}", "c.py:1: ModuleNotFoundError: No module named 'nope'"),
    ("def get_config(argument=''):\n  return 1 / 0", "c.py:2: ZeroDivisionError"),
    ("def get_config(argument='')\n  pass", "c.py:1: "),
    ("x = 1", "has no function get_config"),
    ("def get_config(argument=''): return {1: object()}", "c.py"),
  ],
)
def test_a_config_that_fails_is_one_line(content, message, tmp_path):
  (tmp_path / "c.py").write_text(content)
  with pytest.raises(UserError, match="config: ") as error:
    config.load(str(tmp_path / "c.py"))
  assert message in str(error.value)
  for path, words in ((tmp_path, "is a folder"), (tmp_path / "none.py", "no file")):
    with pytest.raises(UserError, match=words):
      config.load(str(path))


NUMBERS = (
  "optim.peak_lr", "optim.clip", "optim.b1", "model.width", "seed", "steps", "evals.every", "checkpoint.every",
  "log.every", "data.length", "evals.validation.steps", "batch", "model.dropout", "log.samples",
  "data.source.chunk_bytes", "model.epsilon",
)  # fmt: skip


@pytest.mark.parametrize("key", NUMBERS)
def test_numbers_of_a_config_are_finite_and_in_range(key):
  for value in ("nan", "inf", "-1", "1e999", "-1e999", "1" + "0" * 400):
    made = settings_of("x.txt")
    config.override(made, key, value)
    with pytest.raises(UserError, match=f"config.{key.rpartition('.')[0] or key}"):
      experiment.build(made, devices=jax.devices())


def test_a_key_may_be_negative_where_that_means_something():
  assert sections.build({"data": -1}, "mesh", MeshShape).data == -1
  with pytest.raises(UserError, match="must be at least 0"):
    sections.build({"steps": -1}, "evals.validation", Perplexity)


@dataclasses.dataclass(frozen=True)
class Half(CausalLM):
  """Scores the second half of each row; `wrong`: without saying so."""

  wrong: bool = False

  def counts(self, batch):
    return super().counts(batch if self.wrong else self._half(batch))

  def score(self, params, hidden_BxLxD, batch):
    return super().score(params, hidden_BxLxD, self._half(batch))

  @staticmethod
  def _half(batch):
    length = batch["weights"].shape[1]
    return batch | {"weights": batch["weights"] * (jnp.arange(length) >= length // 2)[None]}


def test_bytes_follow_the_weights():
  """A model that knows nothing has the same bits per byte, whatever part of its rows a task or the data scores."""
  tokenizer, layout = registry.Bytes(), Layout.build(MeshShape().build(), "ddp")
  model = Decoder(Config(vocabulary=257, length=16, width=8, depth=1, heads=1, kv_heads=1, head_size=8, mlp=8))

  class Masked(Text):
    def validate(self, *arguments):
      return [batch | {"weights": batch["weights"] * (np.arange(16) < 5)} for batch in super().validate(*arguments)]

  scores = []
  with use_layout(layout):
    for task, kind in ((CausalLM(model), Text), (Half(model), Text), (CausalLM(model), Masked)):
      context = Context(task, kind(ROWS, ROWS, 16), tokenizer, 4, layout)
      params = {"model": model.init(jax.random.key(0), {"inputs": jnp.zeros((1, 16), int)})["params"]}
      params = jax.tree.map(lambda p: getattr(p, "value", p) * 0, params, is_leaf=is_partitioned)
      scores.append(Perplexity().prepare(context)(params)["bits_per_byte"])
  assert scores == pytest.approx([scores[0]] * 3, rel=0.1) and scores[0] > math.log2(257) * 0.9


@pytest.mark.parametrize("wrong", [False, True])
def test_counts_that_differ_from_the_loss_stop_the_first_step(wrong, tmp_path):
  task = {"kind": "tests.test_first_hour:Half", "wrong": wrong}
  made = settings_of(write_text(tmp_path), task=task)
  if wrong:
    with pytest.raises(UserError, match="step 1: Half.loss has other counts"):
      train(made, tmp_path / "run")
  else:
    assert train(made, tmp_path / "run") == 0


def test_terms_without_counts_are_an_error():
  from lmjax.tasks.base import weighted_sum

  task = CausalLM(None)
  with pytest.raises(UserError, match="terms"):
    weighted_sum(task, {"loss": Mean(1.0, 1.0)}, {"loss": 1.0, "more": 1.0})


def test_a_notebook_refuses_what_does_not_exist(odd):
  run = notebook.load(odd[0])
  for layer, head in ((1, None), (-1, None), (0, 2), (0, -1), (0.0, None), (True, None)):
    with pytest.raises(UserError, match="does not exist"):
      run.attention("the", layer=layer, head=head)
  with pytest.raises(UserError, match="layer"):
    run.embed(["the"], layer=9)
  with pytest.raises(UserError, match="no option 'temprature'; did you mean 'temperature'|no option"):
    run.generate("the", temprature=2)
  with pytest.raises(UserError, match="no metric 'train_los'; did you mean 'train_loss'"):
    run.curve(["train_los"])
  with pytest.raises(UserError, match="temperature"):
    run.generate("the", temperature=float("nan"))
  assert len(run.generate("the", new=3, num_samples=2, top_k=5, stop="x")) == 2
  assert len(run.generate("the", new=40, window=True, seed=1)) > 16
  assert run.histograms().axes and notebook.load(odd[0].parent / "hf[1]").histograms().axes
  with pytest.raises(UserError, match="step"):
    notebook.load(odd[0], step=99).table()


def test_a_window_moves_over_a_longer_text(odd, capsys):
  arguments = ["generate", "--workdir", str(odd[0]), "--prompt", "the", "--max_new_tokens", "50", "--seed", "3"]
  assert main(arguments) == 2
  assert main([*arguments, "--window"]) == 0
  assert "continues from the last 8 to 16 tokens" in capsys.readouterr().err
