"""What older versions wrote is read: configs, dotted names and parameters of format 1 (see lmjax/utils/renames.py).

tests/compatibility/ holds a config in the old names, and the same in the new ones.
"""

import json
import sys

import jax
import numpy as np
import pytest

from lmjax import checkpoint, config, experiment
from lmjax.data.tokenizers import registry, words
from lmjax.utils import pytree, renames
from tests.conftest import ROOT
from tests.snapshots import build

FOLDER = ROOT / "tests" / "compatibility"
# Every class and function that format 1 could name, by its module then, and those that have moved since format 2.
NAMES = {
  "lmjax.data.sources": "TextFiles JsonLines",
  "lmjax.data.tables": "JsonLines Parquet TFDS",
  "lmjax.data.text_pairs": "ParallelLines PatternLines JsonPairs",
  "lmjax.data.corpus": "Embedded EmbeddedPairs gutenberg_body",
  "lmjax.data.prepared": "Prepared",
  "lmjax.data.pipeline": "Text",
  "lmjax.data.streams": "Mixture",
  "lmjax.data.pairs": "SentencePairs Sentences",
  "lmjax.data.seq2seq": "TextToText Denoising",
  "lmjax.data.objectives.seq2seq": "Denoising",  # in format 2
  "lmjax.data.denoising": "Consecutive PrefixLM SpanCorruption Denoisers",
  "lmjax.data.both_ways": "BothWays",
  "lmjax.data.words": "Settings Words",
  "lmjax.data.sentinels": "Settings Sentinels",
  "lmjax.data.tokenizers": "Settings",
  "lmjax.models.decoder": "Decoder",
  "lmjax.models.encoder": "Encoder",
  "lmjax.models.encdec": "EncoderDecoder",
  "lmjax.models.recurrent": "Recurrent",
  "lmjax.models.elmo": "ELMo",
  "lmjax.tasks.causal_lm": "CausalLM",
  "lmjax.tasks.continued_lm": "ContinuedLM",
  "lmjax.tasks.masked_lm": "MaskedLM",
  "lmjax.tasks.seq2seq": "Seq2Seq",
  "lmjax.tasks.bilm": "BiLM",
  "lmjax.compression.base": "Identity Chain",
  "lmjax.evals.commonest": "Commonest",
  "lmjax.evals.held_out": "HeldOut",
  "lmjax.evals.perplexity": "Perplexity",
  "lmjax.evals.generation": "Generation",
  "lmjax.evals.ngrams": "Ngrams",
  "lmjax.evals.kneser_ney": "KneserNey",
  "lmjax.data.sources.labelled_pairs": "AsText",
}
DOTTED = [f"{module}:{name}" for module, names in NAMES.items() for name in names.split()]


def read(name: str) -> dict:
  return json.loads((FOLDER / name).read_text())


def test_an_old_config_becomes_the_new_one_and_that_stays_as_it_is():
  assert renames.config(read("old.json")) == read("new.json")
  assert renames.config(read("new.json")) == read("new.json")


def test_old_names_are_read_wherever_a_config_comes_from(tmp_path, monkeypatch):
  def load(settings, overrides=None):
    (tmp_path / "config.json").write_text(json.dumps(settings))
    return config.load(str(tmp_path / "config.json"), overrides)

  new = config.load("configs/gpt2.py:debug")
  del new["optim"]["peak_lr"]
  numbered = {"format": config.FORMAT} | new
  assert load(new) == load(numbered) == new
  changed = load(new, {"optim.peak_lr": "0.5", "rules": "[['kv_heads', ['model']]]"})
  for settings in (new, numbered):  # the number says nothing about the command line
    assert load(settings, {"optim.peak_rate": "0.5", "rules": "[['groups', ['model']]]"}) == changed != new
  old = changed | {"optim": new["optim"] | {"peak_rate": 0.5}, "rules": [["groups", ["model"]]]}
  old |= {"data": new["data"] | {"kind": "lmjax.data.pipeline:Text"}}
  assert load(old) == load(old | {"format": 1}) == changed
  moved = {"format": 2, "data": new["data"] | {"kind": "lmjax.data.objectives.seq2seq:Denoising"}}
  assert load(new | moved)["data"]["kind"] == "lmjax.data.objectives.denoising:Denoising"
  monkeypatch.delitem(sys.modules, "lmjax.utils.renames")
  load(numbered)
  assert experiment.load_config(tmp_path) == new and config.resolve(new["task"]["kind"], "task.kind")
  assert "lmjax.utils.renames" not in sys.modules, "the table is loaded only for what may be old"


def test_an_old_word_tokenizer_is_read(tmp_path):
  saved = words.Words((*words.SPECIAL, "a", "b"), "spaces")
  saved.save(tmp_path)
  assert registry.load(tmp_path) == saved
  content = json.loads((tmp_path / "words.json").read_text())
  content["split"] = content.pop("split_by")
  (tmp_path / "words.json").write_text(json.dumps(content))
  (tmp_path / "kind.json").write_text('{"kind": "lmjax.data.words:Words"}')
  assert registry.load(tmp_path) == saved


@pytest.mark.parametrize(
  "section, old, new", [(s, *keys) for s, table in renames.KEYS.items() for keys in table.items()]
)
def test_every_old_key(section, old, new):
  def nested(key):
    if ":" in section:  # a class
      return {"evals": {"x": {"kind": section, key: "value"}}}
    *parents, last = section.split(".")
    settings = {last: {key: "value"}}
    for parent in reversed(parents):
      settings = {parent: settings}
    return settings

  assert renames.config(nested(old)) == nested(new)
  assert renames.config({"evals": {"x": {old: "value"}}}) == {"evals": {"x": {old: "value"}}}, "only in its section"


@pytest.mark.parametrize("place, new", renames.VALUES.items())
def test_every_old_value(place, new):
  section, key, old = place
  for where in {"data.source": ("source", "validation")}.get(section, ("",)):
    settings = lambda value, where=where: {"data": {where: {key: value}} if where else {key: value}}  # noqa: E731
    assert renames.config(settings(old)) == settings(new)


@pytest.mark.parametrize("old, new", renames.AXES.items())
def test_every_old_axis(old, new):
  assert renames.config({"rules": [[old, ["model"]]]}) == {"rules": [[new, ["model"]]]}
  assert renames.config({"rules": "fsdp"}) == {"rules": "fsdp"}


def test_every_moved_name_is_among_those_that_resolve():
  modules = {name for name in renames.MOVED if ":" not in name}
  assert modules <= set(NAMES) and {name for name in renames.MOVED if ":" in name} <= set(DOTTED)


@pytest.mark.parametrize("name", DOTTED)
def test_an_old_name_resolves(name):
  resolved = config.resolve(name, "kind")
  assert callable(resolved)
  assert renames.dotted(name) == f"{resolved.__module__}:{resolved.__qualname__}", "and where it is defined"
  assert renames.dotted(renames.dotted(name)) == renames.dotted(name)


@pytest.mark.parametrize("family, renamed", [("gpt2", 0), ("bert", 1), ("t5", 13)])
def test_old_parameter_names_lead_to_the_new_ones(family, renamed):
  names = list(pytree.named_leaves(build(family).state(abstract=True).params))
  old = [renames.old_parameter(name) for name in names]
  assert [renames.parameter(name) for name in old] == names
  assert [renames.parameter(name) for name in names] == names
  assert sum(a != b for a, b in zip(names, old, strict=True)) == renamed


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_a_checkpoint_with_old_parameter_names_is_read(family, tmp_path):
  run = build(family)
  state = run.state()
  old: dict = {}
  for name, leaf in pytree.named_leaves(state.params).items():
    *parents, last = renames.old_parameter(name).split("/")
    tree = old
    for parent in parents:
      tree = tree.setdefault(parent, {})
    tree[last] = leaf
  checkpoints = checkpoint.Checkpoints(tmp_path)
  empty = checkpoint.data_state(jax.random.key(0), np.zeros((1, 1)), 0)
  checkpoints.save(1, state.replace(params=old, opt_state={}), empty, None)
  checkpoints.close()
  saved = tmp_path / "checkpoints" / "1"
  (saved / "data_state").rename(saved / "place")  # as format 1 called it, by which it is recognised
  (saved / "checksums.json").unlink()  # which it did not have
  (saved / "metrics" / "metrics").write_text('{"loss": 1e30}')
  parts, _ = checkpoint.load(tmp_path, {"params": run.state(abstract=True).params})
  jax.tree.map(np.testing.assert_array_equal, parts["params"], state.params)
