"""Tokenizers as they are published: the ids of transformers, special tokens, and vocabularies read as written."""

import json
import pickle

import pytest
import tokenizers
from tokenizers import processors

from lmjax.data.tokenizers import load
from lmjax.data.tokenizers.base import ends_of, fingerprint
from lmjax.data.tokenizers.pretrained import read_template
from lmjax.data.tokenizers.settings import Settings
from lmjax.data.tokenizers.special import template_of
from lmjax.utils.errors import UserError
from tests.storage import published
from tests.storage.published import BERT, FAMILIES, TEXTS, write, write_marian

OPTIONS = {
  "bert": [dict(do_lower_case=False), dict(strip_accents=False), dict(tokenize_chinese_chars=False), {}],
  "gpt2": [{}, dict(add_bos_token=True), dict(add_prefix_space=True)],
  "t5": [{}, dict(extra_ids=10)],
  "mt5": [{}, dict(extra_ids=0)],
  "byt5": [{}, dict(extra_ids=3)],
  "llama": [dict(add_bos_token=True), dict(add_bos_token=True, add_eos_token=True, legacy=True)],
  "gemma": [dict(add_bos_token=True)],
  "opt": [dict(add_bos_token=True)],
}


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_those_of_transformers(family, tmp_path, monkeypatch):
  """Of the family's own files and of the tokenizer.json that transformers makes of them; with what surrounds them."""
  transformers = pytest.importorskip("transformers")
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  for number, settings in enumerate(OPTIONS.get(family, [{}])):
    folder, saved = tmp_path / str(number), tmp_path / f"{number} saved"
    folder.mkdir()
    write(folder, family, **settings)
    expected = transformers.AutoTokenizer.from_pretrained(str(folder))
    expected.save_pretrained(saved)
    (saved / "config.json").write_text((folder / "config.json").read_text())
    for path in (folder, saved):
      tokenizer = load(path)
      tokenizer.template = read_template(path, tokenizer)
      assert tokenizer.size == len(expected) and tokenizer.end in (expected.eos_token_id, expected.sep_token_id)
      for text in published.CORPUS[: len(TEXTS) + 1]:
        ids = expected(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.encode(text, parse_special=True) == ids, (path, text)
      first, second = tokenizer.encode("a b"), tokenizer.encode("c")
      assert template_of(tokenizer, "decoder").apply(first).ids == expected("a b")["input_ids"]
      assert template_of(tokenizer, "decoder").apply(first, second).ids == expected("a b", "c")["input_ids"]


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
def test_ids_and_texts_of_marian_are_those_of_transformers(tmp_path):
  transformers = pytest.importorskip("transformers")
  write_marian(tmp_path)
  expected, tokenizer = transformers.MarianTokenizer.from_pretrained(str(tmp_path)), load(tmp_path)
  assert (tokenizer.size, tokenizer.end, tokenizer.start) == (len(expected), 0, expected.pad_token_id)
  for text in [*TEXTS, ">>fra<< Hello world", "a >>fra<< b", ">>deu<<Hello", "The quick brown fox"]:
    ids = expected(text)["input_ids"]
    assert template_of(tokenizer, "encoder_decoder").apply(tokenizer.encode(text, parse_special=True)).ids == ids, text
  ids = [*reversed(range(3, tokenizer.size)), tokenizer.end, 1, tokenizer.start]
  wanted = expected.decode(ids, skip_special_tokens=True, use_source_tokenizer=False)
  assert tokenizer.decode(ids).strip() == wanted
  assert {0, 1}.isdisjoint(tokenizer.encode("Hello </s>")[-1:])
  tokenizer.save(tmp_path / "again")
  for again in (load(tmp_path / "again"), pickle.loads(pickle.dumps(tokenizer))):
    assert fingerprint(again) == fingerprint(tokenizer)
  write_marian(tmp_path, separate_vocabs=True)
  with pytest.raises(UserError, match="separate_vocabs"):
    load(tmp_path)
  write_marian(tmp_path)
  for name, content in (("target.spm", b""), ("source.spm", b"x"), ("vocab.json", b'{"a": -1}'), ("vocab.json", b"[]")):
    (tmp_path / "again" / name).write_bytes(content)
    with pytest.raises(UserError):
      load(tmp_path / "again")


@pytest.mark.parametrize("family", FAMILIES)
def test_text_does_not_become_special_tokens_unless_asked(family, tmp_path):
  write(tmp_path, family)
  tokenizer = load(tmp_path)
  vocabulary = tokenizer.fast.get_added_tokens_decoder()
  special = {i for i, token in vocabulary.items() if token.special and i != tokenizer.roles.get("unk")}
  for number in sorted(special)[:8]:
    name = tokenizer.fast.id_to_token(number)
    assert number in tokenizer.encode(f"a {name} b", parse_special=True)
    assert special.isdisjoint(tokenizer.encode(f"a {name} b")), name
    assert special.isdisjoint(tokenizer.encode_many(["a", f"x{name}", f"{name} {name}"])[2]), name
  tokenizer.save(tmp_path / "saved")
  again = load(tmp_path / "saved")
  assert fingerprint(again) == fingerprint(tokenizer) and ends_of(again) == ends_of(tokenizer)
  assert again.encode(TEXTS[-1]) == tokenizer.encode(TEXTS[-1]) and again.mask == tokenizer.mask


def test_sentinels_are_decoded_and_the_ends_are_not(tmp_path):
  write(tmp_path, "t5")
  tokenizer = load(tmp_path)
  first = tokenizer.fast.token_to_id("<extra_id_0>")
  assert first == tokenizer.size - 1  # numbered downwards
  ids = tokenizer.encode("Hello <extra_id_0> world", parse_special=True)
  assert "<extra_id_0>" in tokenizer.decode([0, *ids, tokenizer.end, 0])
  assert "</s>" not in tokenizer.decode([*ids, tokenizer.end]) and "<pad>" not in tokenizer.decode([0, *ids])


def words(folder, names, special, post=None, **settings):
  fast = tokenizers.Tokenizer(tokenizers.models.WordLevel({n: i for i, n in enumerate(names)}, unk_token=names[0]))
  fast.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  fast.add_special_tokens(list(special))
  fast.post_processor = post
  fast.save(str(folder / "tokenizer.json"))
  (folder / "tokenizer_config.json").write_text(json.dumps(settings))


NAMES = ["<unk>", "<a>", "<b>", "<c>", "<d>", "x", "y"]
SOURCES = ("generation_config.json", "config.json")


def test_start_and_ends_come_from_the_files_in_their_order(tmp_path):
  words(tmp_path, NAMES, NAMES[1:5], bos_token="<a>", eos_token={"content": "<b>"})
  assert (load(tmp_path).start, load(tmp_path).ends) == (1, (2,))
  (tmp_path / "config.json").write_text(json.dumps(dict(model_type="llama", bos_token_id=3, eos_token_id=4)))
  assert (load(tmp_path).start, load(tmp_path).ends) == (3, (4,))
  (tmp_path / "generation_config.json").write_text(json.dumps(dict(eos_token_id=[2, 4])))
  tokenizer = load(tmp_path)
  assert (tokenizer.start, tokenizer.ends, tokenizer.end, tokenizer.size) == (3, (2, 4), 2, 7)
  assert tokenizer.decode([3, 5, 2, 6, 4]) == "x y"
  # An id beyond the vocabulary is a default that nobody set; what is not an id is an error.
  (tmp_path / "generation_config.json").write_text(json.dumps(dict(eos_token_id=50256, bos_token_id=None)))
  assert load(tmp_path).ends == (4,)
  for value in ("</s>", [1, "2"], 1.5, [True]):
    (tmp_path / "generation_config.json").write_text(json.dumps(dict(eos_token_id=value)))
    with pytest.raises(UserError, match="eos_token_id must be a whole number"):
      load(tmp_path)


def test_what_is_never_generated_comes_from_the_files_in_their_order(tmp_path):
  config, generation = tmp_path / "config.json", tmp_path / "generation_config.json"
  config.write_text(json.dumps(dict(bad_words_ids=[[3], [4], [99]], suppress_tokens=[5], forced_eos_token_id=2)))
  assert Settings(tmp_path).excluded(9, (4,)) == ((3, 5), "") and Settings(tmp_path).forced_end()
  generation.write_text(json.dumps(dict(bad_words_ids=[[1, 2], [6]], suppress_tokens=None)))
  assert Settings(tmp_path).excluded(9, (4,)) == ((5, 6), "bad_words_ids of several tokens")
  generation.write_text(json.dumps(dict(bad_words_ids=[], begin_suppress_tokens=[1])))
  assert Settings(tmp_path).excluded(9, ()) == ((5,), "begin_suppress_tokens")
  wrong = [("bad_words_ids", value) for value in (3, [3], [["a"]], {"a": 1}, [[True]])]
  for key, value in [*wrong, ("suppress_tokens", 3), ("suppress_tokens", [[3]]), ("begin_suppress_tokens", "x")]:
    generation.write_text(json.dumps({key: value}))
    with pytest.raises(UserError, match=f"{key} must be a list of"):
      Settings(tmp_path).excluded(9, ())


@pytest.mark.parametrize(
  "post, single, pair",
  [
    (None, [5], [5, 6]),
    (processors.ByteLevel(), [5], [5, 6]),
    (processors.RobertaProcessing(("<b>", 2), ("<a>", 1)), [1, 5, 2], [1, 5, 2, 2, 6, 2]),
    (processors.BertProcessing(("<b>", 2), ("<a>", 1)), [1, 5, 2], [1, 5, 2, 6, 2]),
    (
      processors.Sequence(
        [
          processors.ByteLevel(),
          processors.TemplateProcessing(single="<a> $0 <b>", pair="<a> $A <c> $B:1 <b>:1",
                                        special_tokens=[("<a>", 1), ("<b>", 2), ("<c>", 3)]),
        ]
      ), [1, 5, 2], [1, 5, 3, 6, 2],
    ),
  ],
)  # fmt: skip
def test_a_post_processor_says_what_surrounds_a_string(post, single, pair, tmp_path):
  words(tmp_path, NAMES, NAMES[1:5], post)
  tokenizer = load(tmp_path)
  tokenizer.template = read_template(tmp_path, tokenizer)
  template = template_of(tokenizer, "decoder")
  assert template.apply([5]).ids == single and template.apply([5], [6]).ids == pair
  both = tokenizer.fast.encode("x", "y")
  assert template.apply([5], [6]).token_types == both.type_ids and template.added(pair=True) == len(pair) - 2


@pytest.mark.parametrize("line", ["\u2028", "\x0b", "\x85", "x\ry", "\x1c", "a"])
def test_only_a_line_feed_ends_a_line_of_a_vocabulary(line, tmp_path):
  (tmp_path / "vocab.txt").write_text("\n".join([*BERT, "hello", "a", line, "b", "c"]) + "\n", newline="")
  tokenizer = load(tmp_path)
  assert tokenizer.encode("hello b c") == [5, 8, 9] and tokenizer.size == 10
  assert tokenizer.encode("a") == [7 if line == "a" else 6]  # the last of equal lines
  (tmp_path / "vocab.txt").write_text("\r\n".join([*BERT, "hello", "b"]) + "\r\n", newline="")
  assert load(tmp_path).encode("b hello") == [6, 5]  # every line ends so


def test_merges_with_and_without_a_header(tmp_path):
  names = [*sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()), "##", "he", "hex\u0085"]
  (tmp_path / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
  for header in ("#version: 0.2\n", ""):
    (tmp_path / "merges.txt").write_text(f"{header}# #\nh e\n")
    tokenizer = load(tmp_path)
    assert tokenizer.encode("##he") == [256, 257] and tokenizer.size == len(names)
    assert tokenizer.end is None and tokenizer.ends == ()  # it has none, and gets no id that no model has


def test_added_tokens_count_and_keep_their_ids(tmp_path):
  write(tmp_path, "gpt2")
  size = load(tmp_path).size
  (tmp_path / "added_tokens.json").write_text(json.dumps({"<|im_start|>": size, "<word>": size + 1}))
  settings = dict(tokenizer_class="GPT2Tokenizer", additional_special_tokens=["<|im_start|>", "<|more|>"])
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
  tokenizer = load(tmp_path)
  assert tokenizer.size == size + 3
  assert tokenizer.encode("<|im_start|><word><|more|>", parse_special=True) == [size, size + 1, size + 2]
  assert size not in tokenizer.encode("<|im_start|>") and tokenizer.encode("<word>") == [size + 1]
  assert tokenizer.decode([size, *tokenizer.encode("a")]) == "<|im_start|>a"
  decoder = {str(size + 3): dict(content="<|im_start|>", special=True)}
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(dict(added_tokens_decoder=decoder)))
  with pytest.raises(UserError, match=r"the added token '.+' has the id \d+, but the vocabulary gives it \d+"):
    load(tmp_path)


@pytest.mark.parametrize(
  "name, content, words",
  [
    ("tokenizer_config.json", "[]", "a JSON list, not an object"),
    ("tokenizer_config.json", '{"tokenizer_class": 3}', "tokenizer_class must be a string"),
    ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {}}}', "added_tokens_decoder.x must be"),
    ("tokenizer_config.json", '{"bos_token": {"content": 7}}', "bos_token must be a string"),
    ("tokenizer_config.json", '{"additional_special_tokens": 5}', "additional_special_tokens must be a list"),
    ("added_tokens.json", '{"a": "b"}', "added_tokens.json: a must be a whole number"),
    ("added_tokens.json", '{"a": true}', "added_tokens.json: a must be a whole number"),
    ("added_tokens.json", '{"a": 1000000000000}', "added_tokens.json: a must be a whole number"),
    ("special_tokens_map.json", "3", "a JSON int, not an object"),
    ("generation_config.json", "null", "a JSON NoneType, not an object"),
    ("vocab.json", '{"a": -1}', "must give each token an id of its own"),
    ("vocab.json", "{}", "is corrupt"),
  ],
)
def test_files_that_are_not_what_they_must_be_are_named(name, content, words, tmp_path):
  write(tmp_path, "roberta")
  (tmp_path / name).write_text(content)
  with pytest.raises(UserError, match=words) as error:
    load(tmp_path)
  assert str(tmp_path) in str(error.value)
