"""Embeddings and masked tokens: padding, batches and order change nothing; words are means over their tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import experiment
from lmjax.__main__ import main
from lmjax.data.tokenizers import words
from lmjax.data.tokenizers.registry import train
from lmjax.inference.embed import Embedder
from lmjax.inference.fill_mask import candidates
from lmjax.models import elmo, encoder
from lmjax.models.elmo import ELMo
from lmjax.models.encoder import Encoder
from lmjax.tasks.bidirectional_lm import BidirectionalLM
from lmjax.tasks.causal_lm import CausalLM
from lmjax.tasks.masked_lm import MaskedLM
from lmjax.testing import init_params, tiny_decoder

TEXTS = ["The cat sat on the mat.", "Unbelievable!", "A dog, a second dog and then some more dogs ran.", "on"]
LENGTH = 64


def parts(family: str):
  if family == "decoder":
    tokenizer = train("bpe", TEXTS, 280)
    task = CausalLM(tiny_decoder(vocabulary=tokenizer.size, length=LENGTH))
  elif family == "encoder":
    tokenizer = train("wordpiece", TEXTS, 60)
    shape = dict(vocabulary=tokenizer.size, length=LENGTH, width=32, depth=2, heads=4, head_size=8, mlp=64)
    task = MaskedLM(Encoder(encoder.Config(**shape)))
  else:
    tokenizer = words.train(TEXTS, 20)
    shape = dict(vocabulary=20, length=LENGTH, width=8, cells=12, embedding=4, filters=((1, 4), (2, 6)), highways=1)
    task = BidirectionalLM(ELMo(elmo.Config(**shape)), characters=16)
  zeros = {key: jnp.zeros((1, *leaf.shape[1:]), leaf.dtype) for key, leaf in task.spec(1, LENGTH).items()}
  return task, tokenizer, init_params(task, zeros)


@pytest.mark.parametrize("family", ["decoder", "encoder", "elmo"])
def test_other_rows_order_and_padding_change_nothing(family):
  task, tokenizer, params = parts(family)
  for pooling in ("first", "mean", "last"):
    embedder = Embedder(task, tokenizer, LENGTH, pooling, batch=3)
    together = embedder.sequences(params, [embedder.encode_text(text) for text in TEXTS])
    alone = [embedder.sequences(params, [embedder.encode_text(text)])[0] for text in TEXTS]
    np.testing.assert_allclose(together, alone, atol=2e-6)
    same = np.allclose(together, together[:1], atol=1e-5)
    assert same == ((family, pooling) == ("decoder", "first"))  # a decoder's first token attends to itself alone
  tokens = embedder.tokens(params, [embedder.encode_text(TEXTS[0])])[0]
  text = embedder.encode_text(TEXTS[0])
  assert len(tokens) == text.content.stop - text.content.start
  scaled = Embedder(task, tokenizer, LENGTH, "mean", normalize=True)
  np.testing.assert_allclose(np.linalg.norm(scaled.sequences(params, [text]), axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("family", ["decoder", "encoder", "elmo"])
def test_words_are_means_over_their_tokens(family):
  task, tokenizer, params = parts(family)
  embedder = Embedder(task, tokenizer, LENGTH)
  text = TEXTS[1] + " " + TEXTS[0]
  read = embedder.encode_text(text, by_word=True)
  by_word = embedder.tokens(params, [read])[0]
  assert len(by_word) == len(text.split())
  if family != "elmo":
    assert read.words[0].stop - read.words[0].start > 1  # split into tokens
    tokens = embedder.tokens(params, [embedder.encode_text(text)])[0]
    np.testing.assert_allclose(by_word[0], tokens[: read.words[0].stop - 1].mean(axis=0), atol=1e-6)


def test_pairs_have_token_types_and_long_sequences_are_truncated():
  task, tokenizer, params = parts("encoder")
  embedder = Embedder(task, tokenizer, LENGTH, "first")
  pair = embedder.encode_text("the cat", "a dog")
  assert pair.tokens.count(tokenizer.end) == 2 and sum(pair.token_types) == len(tokenizer.encode("a dog")) + 1
  assert not np.allclose(*embedder.sequences(params, [pair, embedder.encode_text("a dog", "the cat")]))
  assert len(embedder.encode_text("cat " * 500).tokens) == LENGTH
  assert len(embedder.encode_text("cat " * 500, "dog " * 500).tokens) == LENGTH
  two = Embedder(task, tokenizer, LENGTH, "first", layer=2)  # the last of two layers: the final vectors
  np.testing.assert_allclose(two.sequences(params, [pair]), embedder.sequences(params, [pair]), atol=1e-6)


def test_candidates_are_the_probabilities_of_masked_positions():
  task, tokenizer, params = parts("encoder")
  predictions, filled = candidates(task, tokenizer, params, "the [MASK] sat on [MASK].", LENGTH, 3)
  assert len(predictions) == 2 and all(len(row) == 3 for row in predictions)
  assert predictions[0][0][1] >= predictions[0][1][1] > 0 and "[MASK]" not in filled
  the, sat, dot = map(tokenizer.encode, ("the", "sat on", "."))
  inputs = jnp.asarray([[tokenizer.start, *the, tokenizer.mask, *sat, tokenizer.mask, *dot, tokenizer.end]])
  ones = jnp.ones_like(inputs)
  batch = dict(inputs=inputs, token_types=0 * ones, segments=ones, positions=jnp.arange(inputs.shape[1])[None])
  probs = jax.nn.softmax(task.forward(params, batch).logits[0, 2])
  assert predictions[0][0] == (tokenizer.token(int(probs.argmax())), pytest.approx(float(probs.max()), rel=1e-5))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp("embed") / "run"
  config = "configs/bert.py:size=mini,debug"
  assert main(["train", "--config", config, "--workdir", str(folder), "--config.steps=2"]) == 0
  return folder


def test_the_commands_write_their_outputs(run, tmp_path, capsys):
  (tmp_path / "in.txt").write_text("\n".join(TEXTS) + "\n")
  (tmp_path / "pairs.txt").write_text("a\tb\nc d\te\n")
  out = str(tmp_path / "out.npz")
  common = ["embed", "--workdir", str(run), "--output", out]
  assert main([*common, "--input", str(tmp_path / "in.txt")]) == 0
  with np.load(out) as arrays:
    assert arrays["embeddings"].shape == (4, 64) and np.isfinite(arrays["embeddings"]).all()
  assert main([*common, "--input", str(tmp_path / "in.txt"), "--level", "token", "--words"]) == 0
  with np.load(out) as arrays:
    assert [arrays[str(i)].shape for i in range(4)] == [(len(text.split()), 64) for text in TEXTS]
  assert main([*common, "--input", str(tmp_path / "pairs.txt"), "--level", "pair"]) == 0
  with np.load(out) as arrays:
    assert arrays["embeddings"].shape == (2, 64)
  before = (tmp_path / "out.npz").read_bytes()
  assert main([*common, "--input", str(tmp_path / "in.txt"), "--level", "pair"]) == 2
  assert "in.txt:1: a pair is two sequences" in capsys.readouterr().err
  assert (tmp_path / "out.npz").read_bytes() == before and not list(tmp_path.glob("*.part"))
  assert main(["fill", "--workdir", str(run), "The [MASK] of a list."]) == 0
  assert main(["fill", "--workdir", str(run), "no mask"]) == 2
  assert "has no [MASK]" in capsys.readouterr().err


def test_a_model_without_a_masked_head_says_so(tmp_path, capsys):
  folder = str(tmp_path / "run")
  assert main(["train", "--config", "configs/lstm.py:debug", "--workdir", folder, "--config.steps=1"]) == 0
  assert main(["fill", "--workdir", folder, "a [MASK]"]) == 2
  assert "has no masked-LM head: its task is ContinuedLM" in capsys.readouterr().err
  (tmp_path / "in.txt").write_text("the first\nand the second\n")
  files = ["--input", str(tmp_path / "in.txt"), "--output", str(tmp_path / "o.npz")]
  assert main(["embed", "--workdir", folder, *files]) == 0
  assert main(["generate", "--workdir", folder, "--prompt", "the", "--max_new_tokens", "5"]) == 0
  assert experiment.load_config(folder)["model"]["kind"] == "lmjax.models.recurrent:Recurrent"
