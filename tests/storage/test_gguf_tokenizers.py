"""Tokenizers of GGUF files: the ids are those of the tokenizer that the file was written from."""

import io
import json

import pytest
import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, normalizers, pre_tokenizers

from lmjax import storage
from lmjax.commands.convert import convert
from lmjax.storage.gguf.file import GGUF
from lmjax.storage.gguf.splits import SPLITS
from lmjax.utils.errors import UserError
from tests.storage.test_gguf import PROBES, TEXTS, make_file, make_tokenizer, refusal, rewrite, write_folder

FIRST = list({split: name for name, split in reversed(SPLITS.items())}.values())  # one name of each way to split


def with_whole_word(fast):
  """Adds a token that no merges make."""
  spec = json.loads(fast.to_str())
  spec["model"]["vocab"]["Ġxyzzy"] = len(spec["model"]["vocab"])
  return tokenizers.Tokenizer.from_str(json.dumps(spec))


@pytest.mark.parametrize("split", FIRST)
def test_every_pre_tokenizer_is_written_and_read(split, tmp_path):
  fast = with_whole_word(make_tokenizer(split))
  file = make_file(tmp_path / "a.gguf", "gpt2", fast=fast)
  assert SPLITS[GGUF(file).metadata["tokenizer.ggml.pre"]][:2] == SPLITS[split][:2]
  tokenizer, fast.encode_special_tokens = storage.open(file).tokenizer, True
  assert len(tokenizer.encode(" xyzzy")) == (1 if SPLITS[split].whole_words else 6)
  for text in PROBES:
    assert list(tokenizer.encode(text)) == fast.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(tokenizer.encode(text)) == text


SAME = {
  "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
  "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)]),
  "smaug-bpe": pre_tokenizers.Sequence([
    pre_tokenizers.Split(tokenizers.Regex(SPLITS["smaug-bpe"].patterns[0]), "removed", invert=True),
    pre_tokenizers.ByteLevel(False, use_regex=False),
  ]),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_other_spellings_of_a_pre_tokenizer_are_recognised(name, tmp_path):
  fast = make_tokenizer(name)
  fast.pre_tokenizer = SAME[name]
  assert GGUF(make_file(tmp_path / "a.gguf", "gpt2", fast=fast)).metadata["tokenizer.ggml.pre"] == name


OTHER = {
  "prefix": dict(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)),
  "words": dict(pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(False)])),
  "pattern": dict(
    pre_tokenizer=pre_tokenizers.Sequence(
      [pre_tokenizers.Split(tokenizers.Regex(r"\w+|\W"), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
  ),
  "lowercase": dict(normalizer=normalizers.Lowercase()),
}


@pytest.mark.parametrize("name", OTHER)
def test_what_llama_cpp_cannot_do_is_refused(name, tmp_path):
  fast = make_tokenizer()
  for key, value in OTHER[name].items():
    setattr(fast, key, value)
  write_folder(tmp_path / "hf", "gpt2", fast)
  with pytest.raises(UserError, match="no equivalent in llama.cpp.*--without_tokenizer"):
    convert(tmp_path / "hf", tmp_path / "a.gguf")
  assert not (tmp_path / "a.gguf").exists()
  convert(tmp_path / "hf", tmp_path / "a.gguf", with_tokenizer=False)
  assert storage.open(tmp_path / "a.gguf").tokenizer is None


def test_an_unknown_tokenizer_is_named_and_the_model_still_opens(tmp_path):
  file = make_file(tmp_path / "a.gguf", "gpt2")
  for key, value in {"tokenizer.ggml.pre": "wonder-bpe", "tokenizer.ggml.model": "rwkv"}.items():
    other = rewrite(file, tmp_path / f"{value}.gguf", {key: value})
    assert storage.open(other).parameters()
    assert value in refusal(other)
  older = rewrite(file, tmp_path / "b.gguf", {"tokenizer.ggml.pre": None})
  assert storage.open(older).tokenizer.encode(PROBES[0]) == storage.open(file).tokenizer.encode(PROBES[0])


TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}{% endfor %}"


def special_folder(folder, **settings):
  """Writes a model with special tokens and a chat template, as newer Hugging Face folders have them."""
  fast = make_tokenizer(special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
  fast.add_tokens([tokenizers.AddedToken("<tool>", special=False, normalized=False)])
  write_folder(folder, "llama", fast)
  names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
  (folder / "tokenizer_config.json").write_text(json.dumps(names | settings))
  ids = {"bos_token_id": 1, "eos_token_id": [2, 0], "pad_token_id": 0}
  (folder / "generation_config.json").write_text(json.dumps(ids))


@pytest.mark.parametrize("where", ["file", "settings", "list"])
def test_a_chat_template_that_cannot_be_read_ends_in_a_line_or_is_left_out(where, tmp_path):
  template = {"settings": 3, "list": [{"name": ["default"], "template": 3}, {"name": "default", "template": {}}, 5]}
  special_folder(tmp_path / "hf", **({"chat_template": template[where]} if where in template else {}))
  if where == "file":
    (tmp_path / "hf" / "chat_template.jinja").write_bytes(b"\xff{{ messages }}")
    with pytest.raises(UserError, match="chat_template.jinja cannot be read: its text is not UTF-8"):
      convert(tmp_path / "hf", tmp_path / "a.gguf")
    return
  convert(tmp_path / "hf", tmp_path / "a.gguf")
  assert "tokenizer.chat_template" not in GGUF(tmp_path / "a.gguf").metadata


@pytest.mark.parametrize("where", ["file", "settings", "list"])
def test_special_tokens_and_the_chat_template_survive(where, tmp_path):
  template = {"settings": TEMPLATE, "list": [{"name": "default", "template": TEMPLATE}]}.get(where)
  special_folder(tmp_path / "hf", **({"chat_template": template} if template else {}))
  if where == "file":
    (tmp_path / "hf" / "chat_template.jinja").write_text(TEMPLATE)
  convert(tmp_path / "hf", tmp_path / "a.gguf")
  metadata = GGUF(tmp_path / "a.gguf").metadata
  assert metadata["tokenizer.chat_template"] == TEMPLATE
  ids = {"bos": 1, "eos": 2, "eot": 0, "padding": 0}
  assert {role: metadata[f"tokenizer.ggml.{role}_token_id"] for role in ids} == ids
  assert list(metadata["tokenizer.ggml.token_type"][:3]) == [3, 3, 3]
  assert metadata["tokenizer.ggml.token_type"][metadata["tokenizer.ggml.tokens"].index("<tool>")] == 4
  convert(tmp_path / "a.gguf", tmp_path / "copy")
  assert (tmp_path / "copy" / "chat_template.jinja").read_text() == TEMPLATE
  settings = json.loads((tmp_path / "copy" / "generation_config.json").read_text())
  assert settings == {"bos_token_id": 1, "eos_token_id": [2, 0], "pad_token_id": 0}
  names = json.loads((tmp_path / "copy" / "tokenizer_config.json").read_text())
  assert (names["bos_token"], names["eos_token"], names["pad_token"]) == ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
  before, after = (storage.open(tmp_path / name).tokenizer for name in ("hf", "a.gguf"))
  assert (before.start, before.end, before.ends) == (after.start, after.end, after.ends) == (1, 2, (2, 0))
  for text in (*PROBES, "a <tool> b", "<|im_end|>"):
    assert before.encode(text) == after.encode(text)
    assert before.encode(text, parse_special=True) == after.encode(text, parse_special=True)


@pytest.mark.parametrize("bos, eos", [(True, False), (False, True), (True, True), (False, False)])
def test_the_tokens_around_a_text_survive(bos, eos, tmp_path):
  special_folder(tmp_path / "hf")
  fast = tokenizers.Tokenizer.from_file(str(tmp_path / "hf" / "tokenizer.json"))
  around = [*(["<|im_start|>"] if bos else []), "$A", *(["<|im_end|>"] if eos else [])]
  special = [("<|im_start|>", 1), ("<|im_end|>", 2)]
  fast.post_processor = tokenizers.processors.TemplateProcessing(single=around, special_tokens=special)
  (tmp_path / "hf" / "tokenizer.json").write_text(fast.to_str())
  convert(tmp_path / "hf", tmp_path / "a.gguf")
  metadata = GGUF(tmp_path / "a.gguf").metadata
  assert (metadata["tokenizer.ggml.add_bos_token"], metadata["tokenizer.ggml.add_eos_token"]) == (bos, eos)
  convert(tmp_path / "a.gguf", tmp_path / "copy")
  again = tokenizers.Tokenizer.from_file(str(tmp_path / "copy" / "tokenizer.json"))
  assert again.encode("The fox").ids == fast.encode("The fox").ids


def train_sentencepiece(**options) -> bytes:
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(" ".join(TEXTS).splitlines() * 4), model_writer=model, vocab_size=330, model_type="bpe",
    byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    hard_vocab_limit=False, **options,
  )  # fmt: skip
  return model.getvalue()


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_ids_are_those_of_its_own_library(prefix, tmp_path):
  """Pieces, scores and types are taken as they are; written again, scores follow from the order of the merges."""
  model = train_sentencepiece(add_dummy_prefix=prefix)
  proto = sentencepiece_model_pb2.ModelProto.FromString(model)
  processor = sentencepiece.SentencePieceProcessor(model_proto=model)
  pieces = proto.pieces
  plain = make_file(tmp_path / "plain.gguf", "llama", vocabulary=len(pieces) + 5)
  values = {
    "model": "llama", "pre": "default", "tokens": [p.piece for p in pieces], "scores": [p.score for p in pieces],
    "token_type": [int(p.type) for p in pieces], "merges": None, "add_space_prefix": prefix, "bos_token_id": 1,
    "eos_token_id": 2, "unknown_token_id": 0, "add_bos_token": None, "add_eos_token": None,
  }  # fmt: skip
  file = rewrite(plain, tmp_path / "a.gguf", {f"tokenizer.ggml.{key}": value for key, value in values.items()})
  convert(file, tmp_path / "hf")
  convert(tmp_path / "hf", tmp_path / "b.gguf")
  again = GGUF(tmp_path / "b.gguf").metadata
  assert again["tokenizer.ggml.model"] == "llama" and again["tokenizer.ggml.add_bos_token"]
  assert list(again["tokenizer.ggml.token_type"][: len(pieces)]) == values["token_type"]
  for path in (file, tmp_path / "hf", tmp_path / "b.gguf"):
    tokenizer = storage.open(path).tokenizer
    for text in (*PROBES, "</s> <s>", "  the"):
      assert list(tokenizer.encode(text)) == processor.encode(text), text
      assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.start, tokenizer.end) == (1, 2)
  fast = tokenizers.Tokenizer.from_file(str(tmp_path / "hf" / "tokenizer.json"))
  assert fast.encode("the fox").ids == [1, *processor.encode("the fox")]


def test_what_sentencepiece_cannot_say_is_refused(tmp_path):
  """A merge out of order has no score, and text is not changed in other ways than by spaces."""
  fast = tokenizers.Tokenizer(
    tokenizers.models.BPE({"a": 0, "b": 1, "ab": 2, "aab": 3, "aa": 4}, [("a", "b"), ("a", "a")])
  )
  fast.normalizer = normalizers.Replace(" ", "▁")
  fast.decoder = decoders.Replace("▁", " ")
  write_folder(tmp_path / "merges", "llama", fast)
  with pytest.raises(UserError, match="its tokens can be made of two others in 4 ways"):
    convert(tmp_path / "merges", tmp_path / "a.gguf")
  fast.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" ", "▁")])
  write_folder(tmp_path / "nfkc", "llama", fast)
  with pytest.raises(UserError, match="does not change text"):
    convert(tmp_path / "nfkc", tmp_path / "a.gguf")


def test_control_pieces_are_never_read_out_of_text(tmp_path):
  """Not even where their halves are pieces, too."""
  tokens = ["<unk>", "<s>", "</s>", "<", "/", "s", ">", "</", "s>", "▁"]
  values = {"model": "llama", "tokens": tokens, "scores": [0.0] * 3 + [-1.0] * 7, "token_type": [2, 3, 3] + [1] * 7}
  metadata = {f"tokenizer.ggml.{key}": value for key, value in (values | {"merges": None}).items()}
  file = rewrite(make_file(tmp_path / "p.gguf", "llama", vocabulary=310), tmp_path / "a.gguf", metadata)
  assert list(storage.open(file).tokenizer.encode("</s>")) == [9, 7, 8]


def test_what_would_get_other_ids_is_not_written(tmp_path, monkeypatch):
  """Whatever the reason: what is written is read back and compared."""
  write_folder(tmp_path / "hf", "gpt2", make_tokenizer("smollm"))
  monkeypatch.setattr("lmjax.storage.gguf.write_tokenizer._patterns", lambda step: list(SPLITS["qwen2"].patterns))
  with pytest.raises(UserError, match="would get other ids"):
    convert(tmp_path / "hf", tmp_path / "a.gguf")
