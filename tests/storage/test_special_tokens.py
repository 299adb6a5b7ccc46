"""Special tokens in use: generation stops at any end, prompts begin as the folder says."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import notebook, storage
from lmjax.__main__ import main
from lmjax.data.tokenizers import load
from lmjax.decode.beam import Beam
from lmjax.decode.logits import Sampling
from lmjax.decode.sample import Sampler, is_end
from lmjax.inference.embed import make_embedder
from lmjax.inference.fill_mask import candidates
from lmjax.inference.generate import Generator
from lmjax.inference.stream_text import model_inputs
from lmjax.models import encoder, encoder_decoder
from lmjax.models.encoder import Encoder
from lmjax.models.encoder_decoder import EncoderDecoder
from lmjax.storage import huggingface
from lmjax.tasks.causal_lm import CausalLM
from lmjax.tasks.masked_lm import MaskedLM
from lmjax.tasks.seq2seq import Seq2Seq
from lmjax.testing import fake_batch, init_params, tiny_decoder
from lmjax.utils.errors import UserError
from tests.storage import published

SHAPE = dict(width=16, depth=1, heads=2, head_size=8, mlp=32)


def decoder(folder, family="gpt2", **settings):
  """Writes a tiny GPT-2 with a tokenizer as it is published, and returns the size of its vocabulary."""
  folder.mkdir()
  published.write(folder, family, **settings)
  size = load(folder).size
  task = CausalLM(tiny_decoder(vocabulary=size + 3))
  whole = folder.parent / f"{folder.name} model"
  huggingface.save(whole, task.model, init_params(task, fake_batch(task, 1, 8), seed=5), files=folder)
  return whole, size


def write(folder, name, **values):
  file = folder / name
  saved = json.loads(file.read_text()) if file.exists() else {}
  file.write_text(json.dumps(saved | values))


def continuation(folder, prompt, beams=0, **options):
  loaded = storage.open(folder).load()
  return Generator(loaded, Sampling(temperature=0), 8, beams=beams, **options).texts([(prompt, 0)])[0]


def test_generation_stops_at_any_end(tmp_path):
  folder, _ = decoder(tmp_path / "gpt2")
  loaded = storage.open(folder).load()
  ids = loaded.tokenizer.encode("Hello")
  sampler = Sampler(loaded.task.model, 32, Sampling(temperature=0))
  params = sampler.prepare(loaded.params["model"])
  drawn = np.concatenate(list(sampler.tokens(params, [ids], 8, [0])), axis=1)[0].tolist()
  for at in (0, 5):
    number = drawn[at]
    ends = (loaded.task.model.config.vocabulary - 1, number)
    stopped = Sampler(loaded.task.model, 32, Sampling(temperature=0), ends)
    row = np.concatenate(list(stopped.tokens(params, [ids], 8, [0], every=3)), axis=1)[0]
    first = drawn.index(number)
    assert first <= at and row[row >= 0].tolist() == drawn[: first + 1]
  write(folder, "generation_config.json", eos_token_id=list(ends))
  assert continuation(folder, "Hello") == loaded.tokenizer.decode(drawn[:first])
  greedy = Beam(loaded.task.model, 32, 1, 0.0, (drawn[2], drawn[1])).search(params, [ids], 8)[0][0, 0]
  first = min(drawn.index(drawn[1]), drawn.index(drawn[2]))
  assert greedy[greedy >= 0].tolist() == drawn[: first + 1]
  # Beams as many as there are: each continuation ends with at most one end, its last token.
  many = Beam(loaded.task.model, 32, 4, 0.6, tuple(range(0, 400, 3))).search(params, [ids], 8)[0][0]
  for row in many:
    row = row[row >= 0]
    assert not np.isin(row[:-1], range(0, 400, 3)).any()


def test_ends():
  tokens = jnp.asarray([[1, 2, -1], [3, 1, 0]])
  for end in (None, (), 1, (1,), (1, 3), (0, 2, 9)):
    expected = np.isin(tokens, [] if end is None else end)
    np.testing.assert_array_equal(is_end(tokens, end), expected)


@pytest.mark.parametrize(
  "family, settings, before",
  [
    ("gpt2", {}, []), ("gpt2", dict(add_bos_token=True), [0]), ("qwen2", {}, []), ("llama", {}, [1]),
    ("llama", dict(add_bos_token=False), []), ("gemma", {}, [2]), ("openai-gpt", {}, []),
  ],
)  # fmt: skip
def test_a_prompt_begins_as_the_folder_says(family, settings, before, tmp_path):
  folder, _ = decoder(tmp_path / "decoder", family, **settings)
  write(folder, "config.json", bos_token_id=None, eos_token_id=None)
  run = notebook.load(folder)
  text = "Hello world"
  ids = run.tokenizer.encode(text)
  assert model_inputs(run.model, run.tokenizer, [text])[0] == [before + ids]
  embedder = make_embedder(run.loaded, folder, None, 0, False, 1)
  encoded = embedder.encode_text(text)
  assert encoded.tokens == before + ids and encoded.content == slice(len(before), len(before) + len(ids))
  words = embedder.encode_text(text, by_word=True).words if family in ("gpt2", "qwen2") else None
  assert words is None or words[-1].stop == len(before) + len(ids)
  if run.tokenizer.start is None:
    with pytest.raises(UserError, match="has no tokens"):
      model_inputs(run.model, run.tokenizer, [""]) and Generator(run.loaded, Sampling(), 2).texts([("", 0)])
  else:
    assert model_inputs(run.model, run.tokenizer, [""])[0] == [before or [run.tokenizer.start]]
    assert len(embedder.encode_text("").tokens) == 1


def test_special_tokens_in_a_prompt_are_parsed_when_asked(tmp_path, capsys):
  folder, _ = decoder(tmp_path / "chat", additional_special_tokens=["<|im_start|>", "<|im_end|>"])
  loaded = storage.open(folder).load()
  model = loaded.task.model
  prompt = "<|im_start|>a<|im_end|>"
  plain, _ = model_inputs(model, loaded.tokenizer, [prompt])
  parsed, _ = model_inputs(model, loaded.tokenizer, [prompt], parse_special=True)
  first = loaded.tokenizer.fast.token_to_id("<|im_start|>")
  assert first in parsed[0] and first not in plain[0] and len(parsed[0]) == 3
  command = ["generate", "--workdir", str(folder), "--prompt", prompt, "--max_new_tokens", "2"]
  assert main([*command, "--parse_special", "--temperature", "0"]) == 0
  assert capsys.readouterr().out.startswith(prompt)


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path, capsys):
  folder, size = decoder(tmp_path / "gpt2")
  assert storage.open(folder).load().tokenizer.size == size  # a smaller one leaves rows of padding
  write(folder, "added_tokens.json", **{f"<extra {i}>": size + i for i in range(4)})
  for command in (["generate", "--prompt", "a"], ["embed", "--input", __file__, "--output", str(tmp_path / "o.npz")]):
    assert main([*command, "--workdir", str(folder)]) == 2
    error = capsys.readouterr().err
    assert f"the tokenizer has {size + 4} ids, but the model's vocabulary has {size + 3}" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_masks_of_any_name_are_filled(family, tmp_path, capsys):
  folder = tmp_path / family
  folder.mkdir()
  published.write(folder, family)
  offset = dict(offset=2, token_types=1, pooler=False) if family == "roberta" else {}
  task = MaskedLM(
    Encoder(encoder.Config(vocabulary=load(folder).size, length=32, **SHAPE, **offset)), next_sentence=False
  )
  params = init_params(task, fake_batch(task, 1, 32))
  huggingface.save(tmp_path / "model", task.model, params, files=folder)
  run = notebook.load(tmp_path / "model")
  mask = "<mask>" if family == "roberta" else "[MASK]"
  fill = lambda text: candidates(run.loaded.task, run.tokenizer, run.params, text, 32, 3)  # noqa: E731
  own, usual = fill(f"Hello {mask}"), fill("Hello [MASK]")
  assert own == usual and len(own[0]) == 1 and mask not in own[1]
  # The mask is one token, with the folder's special tokens around the text.
  around = [2, 3] if family == "bert" else [0, 2]
  ids = [around[0], *run.tokenizer.encode(f"Hello {mask}", parse_special=True), around[1]]
  logits = run.loaded.task.forward(run.params, {"inputs": jnp.asarray([ids])}).logits[0, ids.index(run.tokenizer.mask)]
  assert own[0][0][0][1] == pytest.approx(float(jax.nn.softmax(logits).max()), rel=1e-4)
  assert main(["fill", "--workdir", str(tmp_path / "model"), f"a {mask}"]) == 0
  assert main(["fill", "--workdir", str(tmp_path / "model"), "no gap"]) == 2
  assert f"has no {mask}" in capsys.readouterr().err


def test_an_encoder_decoder_embeds_and_reads_sentinels(tmp_path):
  folder = tmp_path / "t5"
  folder.mkdir()
  published.write(folder, "t5", extra_ids=10)
  config = encoder_decoder.Config(vocabulary=load(folder).size + 28, length=32, **SHAPE)
  task = Seq2Seq(EncoderDecoder(config), target_length=8)
  params = init_params(task, fake_batch(task, 1, 32), seed=3)
  huggingface.save(tmp_path / "model", task.model, params, files=folder)
  run = notebook.load(tmp_path / "model")
  ids = run.tokenizer.encode("Hello <extra_id_0>", parse_special=True)
  starts, sources = model_inputs(run.model, run.tokenizer, ["Hello <extra_id_0>"], parse_special=True)
  assert starts == [[0]] and sources == [[*ids, run.tokenizer.end]]
  assert run.tokenizer.fast.token_to_id("<extra_id_0>") in ids
  hidden, _ = run.model.apply({"params": run.params["model"]}, {"inputs": jnp.asarray([[*ids, 1]])}, method="encode")
  embedder = make_embedder(run.loaded, folder, None, 0, False, 2, parse_special=True)
  together = embedder.sequences(run.params, [embedder.encode_text(t) for t in ("Hello <extra_id_0>", "a b c d e")])
  np.testing.assert_allclose(together[0], np.asarray(hidden)[0].mean(axis=0), atol=1e-5)
