"""Every tokenizer of ours as one that transformers reads: the same ids, the same text again."""

import json

import pytest

from lmjax.__main__ import main
from lmjax.data.sources.python_docs import PythonDocs
from lmjax.data.tokenizers import registry, words
from lmjax.data.tokenizers.sentinels import Sentinels
from lmjax.models.encoder_decoder import Config, EncoderDecoder
from lmjax.storage import huggingface
from lmjax.storage.huggingface import tokenizer
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
def test_the_library_s_own_has_the_same_ids_and_text(kind):
  ours = made(kind)
  fast = tokenizer.convert(ours)
  assert fast.get_vocab_size() == ours.size
  for text in (*TEXTS, *tokenizer.PROBE):
    ids = list(map(int, ours.encode(text)))
    assert fast.encode(text, add_special_tokens=False).ids == ids
    assert fast.decode(ids) == ours.decode(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_a_written_tokenizer_is_read_again(kind, tmp_path):
  ours = made(kind)
  tokenizer.write(tmp_path, ours, "")
  again = registry.load(tmp_path)
  assert again.size == ours.size and again.end == ours.end
  assert [list(again.encode(text)) for text in TEXTS] == [list(ours.encode(text)) for text in TEXTS]


def test_sentinels_keep_their_places():
  ours = made("t5")
  fast = tokenizer.convert(ours)
  assert [fast.token_to_id(f"<extra_id_{i}>") for i in (0, 99)] == [ours.sentinel(0), ours.sentinel(99)]


def test_a_tokenizer_of_one_s_own_is_refused(tmp_path):
  class Own(registry.Bytes):
    def encode(self, text):
      return [0]

  with pytest.raises(UserError, match="other ids; --without_tokenizer"):
    tokenizer.write(tmp_path, Own(), "")
  with pytest.raises(UserError, match="object has no transformers"):
    tokenizer.write(tmp_path, object(), "")
  assert not list(tmp_path.iterdir())


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind,template", [(kind, "") for kind in KINDS] + [("wordpiece", "pair"), ("t5", "source")])
def test_transformers_reads_it(kind, template, tmp_path):
  transformers, ours = pytest.importorskip("transformers"), made(kind)
  tokenizer.write(tmp_path, ours, template)
  model = {"pair": "bert", "source": "t5"}.get(template, "gpt2")
  (tmp_path / "config.json").write_text(json.dumps({"model_type": model}))
  theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
  for text in TEXTS[:8]:
    ids = list(map(int, ours.encode(text)))
    around = {"pair": [ours.start, *ids, ours.end], "source": [*ids, ours.end]}.get(template, ids)
    assert theirs(text)["input_ids"] == around
    assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids)
  assert theirs.eos_token_id == ours.end and theirs.bos_token_id == ours.start


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
def test_an_encoder_decoder_writes_the_same_text_there(tmp_path, capsys):
  transformers, ours = pytest.importorskip("transformers"), made("t5")
  shape = dict(width=32, depth=2, heads=4, head_size=8, mlp=64)
  task = Seq2Seq(EncoderDecoder(Config(vocabulary=ours.size, length=32, **shape)), target_length=8)
  huggingface.save(tmp_path / "t5", task.model, init_params(task, fake_batch(task, 1, 32), seed=3), ours)
  theirs = transformers.T5ForConditionalGeneration.from_pretrained(str(tmp_path / "t5")).eval()
  read = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "t5"))
  text = "The default encoding of a string"
  made_there = theirs.generate(**read(text, return_tensors="pt"), max_new_tokens=12, do_sample=False)[0].tolist()
  assert made_there[0] == ours.start
  options = ["--prompt", text, "--temperature", "0", "--max_new_tokens", "12"]
  assert main(["generate", "--workdir", str(tmp_path / "t5"), *options]) == 0
  assert read.decode(made_there, skip_special_tokens=True) in capsys.readouterr().out


def test_a_t5_that_says_nothing_of_its_start_begins_with_its_padding(tmp_path):
  ours = made("t5")
  shape = dict(width=32, depth=1, heads=4, head_size=8, mlp=64)
  task = Seq2Seq(EncoderDecoder(Config(vocabulary=ours.size, length=32, **shape)), target_length=8)
  huggingface.save(tmp_path / "t5", task.model, init_params(task, fake_batch(task, 1, 32)), ours)
  settings = json.loads((tmp_path / "t5" / "config.json").read_text())
  assert settings.pop("decoder_start_token_id") == ours.start and settings["eos_token_id"] == ours.end
  (tmp_path / "t5" / "config.json").write_text(json.dumps(settings))
  assert huggingface.load(tmp_path / "t5").tokenizer.start == settings["pad_token_id"] == 0
