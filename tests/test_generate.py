"""The generate command: the same continuations streamed, printed and written, and prompts from files."""

import collections
import json

import jax.numpy as jnp
import pytest

from lmjax import notebook, storage
from lmjax.__main__ import main
from lmjax.data.tokenizers.base import Bytes
from lmjax.data.tokenizers.registry import train
from lmjax.decode.logits import Sampling
from lmjax.inference import stream_text
from lmjax.inference.generate import Generator, in_order, read_prompts
from lmjax.inference.stream_text import StreamedText
from lmjax.storage import huggingface
from lmjax.testing import init_params, tiny_decoder
from lmjax.utils.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A Hugging Face folder of a tiny decoder with random weights."""
  tokenizer = train("bpe", ["the quick brown fox jumps over the lazy dog " * 20], 300)
  model = tiny_decoder(vocabulary=tokenizer.size, length=32)
  params = init_params(model, {"inputs": jnp.zeros((1, 4), jnp.int32)})["params"]
  path = tmp_path_factory.mktemp("generate") / "hf"
  huggingface.save(path, model, {"model": params, "heads": {}}, tokenizer)
  return path


def generate(folder, *options):
  return main(["generate", "--workdir", str(folder), "--max_new_tokens", "8", *map(str, options)])


def test_streamed_printed_and_written_continuations_are_the_same(folder, tmp_path, capsys):
  out = tmp_path / "out.jsonl"
  options = ["--prompt", "the", "--prompt", "a fox", "--num_samples", 2]
  assert generate(folder, *options, "--output", out) == 0
  records = [json.loads(line) for line in out.read_text().splitlines()]
  assert [(r["prompt"], r["sample"]) for r in records] == [("the", 0), ("the", 1), ("a fox", 0), ("a fox", 1)]
  assert records[0]["text"] != records[1]["text"]  # another seed
  assert generate(folder, *options, "--batch", 3) == 0  # batches do not matter
  assert capsys.readouterr().out == "".join(f"--- sample {r['sample']}\n{r['prompt']}{r['text']}\n" for r in records)
  assert generate(folder, "--prompt", "the", "--seed", 1) == 0
  assert capsys.readouterr().out == f"the{records[1]['text']}\n"
  assert notebook.load(folder).generate("the", new=8, seed=1) == records[1]["text"]


def test_a_draft_changes_the_speed_alone(folder, tmp_path, capsys):
  assert generate(folder, "--prompt", "the", "--prompt", "a fox", "--temperature", 0) == 0
  wanted = capsys.readouterr().out
  assert generate(folder, "--prompt", "the", "--prompt", "a fox", "--temperature", 0, "--draft", folder) == 0
  shown = capsys.readouterr()
  assert shown.out == wanted and "of 16 drafted tokens were accepted; 3.50 tokens a step of the model" in shown.err
  tokenizer = train("bpe", ["pack my box with five dozen liquor jugs " * 20], 300)
  model = tiny_decoder(vocabulary=tokenizer.size, length=32)
  params = init_params(model, {"inputs": jnp.zeros((1, 4), jnp.int32)})["params"]
  huggingface.save(tmp_path / "other", model, {"model": params, "heads": {}}, tokenizer)
  assert generate(folder, "--prompt", "the", "--draft", tmp_path / "other") == 2
  assert "another vocabulary" in capsys.readouterr().err
  assert generate(folder, "--prompt", "the", "--draft_tokens", 2) == 2
  assert generate(folder, "--prompt", "the", "--draft", folder, "--beams", 2) == 2


def test_many_prompts_have_the_texts_that_each_has_alone(folder, monkeypatch):
  """More than a batch, short and long, several samples of each; with a stop string that ends some of them early."""
  monkeypatch.setattr(stream_text, "SHORT", 3)
  loaded = storage.open(folder).load()
  rows = [(prompt, sample) for prompt in ("the", "a fox", "quick brown fox " * 2, "", "dog") for sample in range(3)]
  whole = [Generator(loaded, Sampling(), 20).texts([row])[0] for row in rows]
  counts = collections.Counter(character for text in whole for character in set(text[:-4]) if character.isascii())
  stop = counts.most_common(1)[0][0]
  generator = Generator(loaded, Sampling(), 20, stops=(stop,))
  assert 1 < sum(stop in text[:-4] for text in whole) < 15
  numbered = list(generator.all_texts(rows, 4))
  assert sorted(number for number, _ in numbered) == list(range(15)) != [number for number, _ in numbered]
  assert list(in_order(numbered)) == [generator.texts([row])[0] for row in rows]
  assert list(in_order(generator.all_texts(rows[:2], 4))) == [text for _, text in sorted(numbered)[:2]]


def test_the_first_stop_that_is_complete_ends_the_text():
  """However many ids come together."""
  for size in (1, 3, 16):
    text, ids = StreamedText(Bytes(), [], ["efgh", "g"]), Bytes().encode("abcdefghi")
    for first in range(0, len(ids), size):
      text.add(ids[first : first + size])
    assert text.text == "abcdef" and text.stopped


def test_beams_are_printed_best_first(folder, capsys):
  assert generate(folder, "--prompt", "the", "--beams", 2, "--num_samples", 2) == 0
  lines = capsys.readouterr().out
  assert lines.startswith("--- best 0\nthe\n") and "--- best 1\nthe\n" in lines
  assert generate(folder, "--prompt", "the", "--beams", 1, "--num_samples", 2) == 2
  assert "--num_samples 2 is more than --beams 1" in capsys.readouterr().err


def test_prompts_come_from_files(tmp_path):
  file = tmp_path / "prompts"
  file.write_text('plain\n\n{"prompt": "from JSON"}\n')
  assert read_prompts(file) == ["plain", "from JSON"]
  for text, message in (("", "has no prompts"), ('{"text": 1}', ":1: prompt is missing")):
    file.write_text(text)
    with pytest.raises(UserError, match=message):
      read_prompts(file)
  with pytest.raises(UserError, match="cannot be read"):
    read_prompts(tmp_path / "nowhere")
