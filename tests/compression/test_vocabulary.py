"""Vocabularies without the tokens that a text does not use: the text is encoded and scored as before."""

import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from lmjax import storage
from lmjax.__main__ import main
from lmjax.compression.vocabulary import keep_rows
from lmjax.data.tokenizers import registry
from lmjax.data.tokenizers.base import Bytes
from lmjax.data.tokenizers.cut import cut
from lmjax.parallel.sharding import is_partitioned
from lmjax.state import named_parameters
from lmjax.storage import huggingface
from lmjax.testing import fake_batch, init_params
from lmjax.utils import pytree
from lmjax.utils.errors import UserError
from tests.families import tiny_task

WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "lazy", "while", "seventeen", "wizards", "examine", "temples")
CORPUS = [" ".join(WORDS[(i * k) % len(WORDS)] for k in range(1, 9)) + f", {i}." for i in range(60)]
USED = ["the quick fox examine temples, 7.", "a lazy dog over the temples."]


def unigram(folder):
  """Returns a unigram tokenizer of the `tokenizers` library, with special tokens around a text."""
  made = tokenizers.Tokenizer(models.Unigram())
  made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
  special = ["<pad>", "</s>", "<unk>"]
  made.train_from_iterator(
    CORPUS, trainers.UnigramTrainer(vocab_size=90, special_tokens=special, unk_token="<unk>", show_progress=False)
  )
  made.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
  made.save(str(folder / "tokenizer.json"))
  return registry.load(folder)


@pytest.mark.parametrize("algorithm", ["bpe", "wordpiece", "unigram", "characters"])
def test_a_text_is_encoded_as_before(algorithm, tmp_path):
  whole = unigram(tmp_path) if algorithm == "unigram" else registry.train(algorithm, CORPUS, 400)
  small, kept = cut(whole, USED)
  assert small.size == len(kept) < whole.size and kept == sorted(kept)
  for text in USED:
    assert [kept[i] for i in small.encode(text)] == list(whole.encode(text)), text
    assert small.decode(small.encode(text)) == whole.decode(whole.encode(text))
  assert (kept[small.start], kept[small.end]) == (whole.start, whole.end)
  assert small.encode("") == []
  if algorithm == "unigram":
    ids = small.fast.encode(USED[0]).ids
    assert ids[-1] == small.end and [kept[i] for i in ids] == whole.fast.encode(USED[0]).ids
  if algorithm == "bpe":  # whose bytes stay
    assert small.decode(small.encode("naïve 日本")) == "naïve 日本"


def test_a_tokenizer_that_cannot_be_cut():
  with pytest.raises(UserError, match="of the kind Bytes cannot be cut"):
    cut(Bytes(), USED)


@pytest.mark.parametrize("family", ["GPT", *(pytest.param(name, marks=pytest.mark.slow) for name in ("BERT", "T5"))])
def test_scores_of_the_tokens_that_stay_are_the_same(family):
  """So their probabilities are, up to the sum of the others; tables are padded as new ones are."""
  task, small = tiny_task(family, vocabulary=300), tiny_task(family, vocabulary=20)
  kept = np.sort(np.random.default_rng(0).choice(300, 20, replace=False))
  batch = fake_batch(small)
  params = pytree.named_leaves(init_params(task, fake_batch(task)))
  boxes = pytree.named_leaves(named_parameters(task, 4, 16), is_leaf=is_partitioned)
  cut_boxes = keep_rows({name: box.replace(value=params[name]) for name, box in boxes.items()}, kept.tolist(), 300)
  wanted = pytree.named_leaves(named_parameters(small, 4, 16), is_leaf=is_partitioned)
  assert {n: (b.value.shape, b.rows) for n, b in cut_boxes.items()} == {
    n: (b.value.shape, b.rows) for n, b in wanted.items()
  }

  def tree(arrays):
    return pytree.map_named(lambda name, _: arrays[name], named_parameters(task, 4, 16), is_leaf=is_partitioned)

  old = {key: jnp.asarray(kept)[value] if key.endswith("inputs") else value for key, value in batch.items()}
  before = task.forward(tree(params), old).logits[..., kept]
  after = small.forward(tree({name: box.value for name, box in cut_boxes.items()}), batch).logits
  np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)


def test_a_copy_opens_with_its_tokenizer_and_is_exported(tmp_path, capsys):
  tokenizer = registry.train("bpe", CORPUS, 400)
  task = tiny_task("GPT", vocabulary=tokenizer.size)
  path, small, back = (tmp_path / name for name in ("model", "small", "back"))
  huggingface.save(path, task.model, init_params(task, fake_batch(task)), tokenizer)
  (tmp_path / "used.txt").write_text("\n".join(USED))
  command = ["compress", "--workdir", str(path), "--vocabulary", str(tmp_path / "used.txt"), "--measure", ""]
  assert main([*command, "--output", str(small)]) == 0
  assert main(["convert", "--input", str(small), "--output", str(back)]) == 0
  opened = [storage.open(where) for where in (path, small, back)]
  kept = cut(tokenizer, ["\n".join(USED), *USED])[1]
  for saved in opened[1:]:
    assert saved.task.model.config.vocabulary == saved.tokenizer.size == len(kept) < tokenizer.size
    assert [kept[i] for i in saved.tokenizer.encode(USED[0])] == tokenizer.encode(USED[0])
    tables = [np.asarray(each.parameters()["model/embed/table"]) for each in (opened[0], saved)]
    np.testing.assert_allclose(tables[1][: len(kept)], tables[0][kept], atol=1e-6)
  again = ["compress", "--workdir", str(small), "--output", str(tmp_path / "both"), "--quantize", "int8"]
  assert main([*again, "--measure", ""]) == 0
  assert storage.open(tmp_path / "both").tokenizer.encode(USED[1]) == opened[1].tokenizer.encode(USED[1])
  capsys.readouterr()
  calibrated = ["--quantize", "int4", "--gptq", "--calibration", str(tmp_path / "used.txt")]
  assert main([*command, "--output", str(tmp_path / "out"), *calibrated]) == 2
  assert "cut the --vocabulary first" in capsys.readouterr().err and not (tmp_path / "out").exists()
