"""Every kind of tokenizer in the files of transformers: the same ids, and the same text from them."""

import json

import pytest

from lmjax.__main__ import main
from lmjax.data.sources.python_docs import PythonDocs
from lmjax.data.tokenizers import registry, words
from lmjax.data.tokenizers.sentinels import Sentinels
from lmjax.models.encoder_decoder import Config, EncoderDecoder
from lmjax.storage import huggingface
from lmjax.storage.huggingface import tokenizer as files
from lmjax.tasks.seq2seq import Seq2Seq
from lmjax.testing import fake_batch, init_params
from lmjax.utils.errors import UserError

TEXTS = [PythonDocs()[i][:1500] for i in range(0, 300, 10)]
KINDS = ("bpe", "wordpiece", "unigram", "sentencepiece_bpe", "characters", "bytes", "words", "spaces", "t5")


def made(kind):
  if kind in words.PATTERNS:
    return words.train(TEXTS[:15], 400, kind)
  return Sentinels(made("unigram")) if kind == "t5" else registry.train(kind, TEXTS[:15], 500)


@pytest.mark.parametrize("kind", KINDS)
def test_the_converted_tokenizer_has_the_same_ids_and_text(kind):
  tokenizer = made(kind)
  fast = files.convert(tokenizer)
  assert fast.get_vocab_size() == tokenizer.size
  for text in (*TEXTS, *files.PROBE):
    ids = list(map(int, tokenizer.encode(text)))
    assert fast.encode(text, add_special_tokens=False).ids == ids
    assert fast.decode(ids) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_a_written_tokenizer_is_read_again(kind, tmp_path):
  tokenizer = made(kind)
  files.write(tmp_path, tokenizer, "")
  again = registry.load(tmp_path)
  assert again.size == tokenizer.size and again.end == tokenizer.end
  assert [list(again.encode(text)) for text in TEXTS] == [list(tokenizer.encode(text)) for text in TEXTS]


def test_sentinels_keep_their_ids():
  tokenizer = made("t5")
  fast = files.convert(tokenizer)
  assert [fast.token_to_id(f"<extra_id_{i}>") for i in (0, 99)] == [tokenizer.sentinel(0), tokenizer.sentinel(99)]


def test_a_custom_tokenizer_is_refused(tmp_path):
  class Own(registry.Bytes):
    def encode(self, text):
      return [0]

  with pytest.raises(UserError, match="other ids; --without_tokenizer"):
    files.write(tmp_path, Own(), "")
  with pytest.raises(UserError, match="object has no transformers"):
    files.write(tmp_path, object(), "")
  assert not list(tmp_path.iterdir())


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind,template", [(kind, "") for kind in KINDS] + [("wordpiece", "pair"), ("t5", "source")])
def test_transformers_reads_it(kind, template, tmp_path):
  transformers, tokenizer = pytest.importorskip("transformers"), made(kind)
  files.write(tmp_path, tokenizer, template)
  model = {"pair": "bert", "source": "t5"}.get(template, "gpt2")
  (tmp_path / "config.json").write_text(json.dumps({"model_type": model}))
  fast = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
  for text in TEXTS[:8]:
    ids = list(map(int, tokenizer.encode(text)))
    expected = {"pair": [tokenizer.start, *ids, tokenizer.end], "source": [*ids, tokenizer.end]}.get(template, ids)
    assert fast(text)["input_ids"] == expected
    assert fast.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids)
  assert fast.eos_token_id == tokenizer.end and fast.bos_token_id == tokenizer.start


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
def test_an_encoder_decoder_generates_the_same_text_in_transformers(tmp_path, capsys):
  transformers, tokenizer = pytest.importorskip("transformers"), made("t5")
  shape = dict(width=32, depth=2, heads=4, head_size=8, mlp=64)
  task = Seq2Seq(EncoderDecoder(Config(vocabulary=tokenizer.size, length=32, **shape)), target_length=8)
  huggingface.save(tmp_path / "t5", task.model, init_params(task, fake_batch(task, 1, 32), seed=3), tokenizer)
  hf_model = transformers.T5ForConditionalGeneration.from_pretrained(str(tmp_path / "t5")).eval()
  read = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "t5"))
  text = "The default encoding of a string"
  expected = hf_model.generate(**read(text, return_tensors="pt"), max_new_tokens=12, do_sample=False)[0].tolist()
  assert expected[0] == tokenizer.start
  options = ["--prompt", text, "--temperature", "0", "--max_new_tokens", "12"]
  assert main(["generate", "--workdir", str(tmp_path / "t5"), *options]) == 0
  assert read.decode(expected, skip_special_tokens=True) in capsys.readouterr().out


def test_a_t5_without_a_start_token_starts_with_its_padding(tmp_path):
  tokenizer = made("t5")
  shape = dict(width=32, depth=1, heads=4, head_size=8, mlp=64)
  task = Seq2Seq(EncoderDecoder(Config(vocabulary=tokenizer.size, length=32, **shape)), target_length=8)
  huggingface.save(tmp_path / "t5", task.model, init_params(task, fake_batch(task, 1, 32)), tokenizer)
  settings = json.loads((tmp_path / "t5" / "config.json").read_text())
  assert settings.pop("decoder_start_token_id") == tokenizer.start and settings["eos_token_id"] == tokenizer.end
  (tmp_path / "t5" / "config.json").write_text(json.dumps(settings))
  assert huggingface.load(tmp_path / "t5").tokenizer.start == settings["pad_token_id"] == 0
