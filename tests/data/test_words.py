"""Words, their characters, and bidirectional rows."""

import json

import numpy as np
import pytest

from lmjax.data.objectives.bidirectional import BidirectionalText
from lmjax.data.sources.python_docs import PythonDocs
from lmjax.data.sources.text import TextFiles
from lmjax.data.tokenizers import base, registry, words
from lmjax.data.tokenizers.spelling import spell
from lmjax.utils.errors import UserError


def test_words_are_the_most_frequent_and_can_be_reloaded(tmp_path):
  made = words.train(["the cat saw the dog. The dog's", "the cat"], size=6)
  assert made.vocabulary[:5] == ("<S>", "</S>", "<unk>", "the", "cat")
  assert made.encode("the cat, the") == [3, 4, 2, 3]
  assert made.words("Isn't it, they’d say: 3.5?") == ["Isn't", "it", ",", "they’d", "say", ":", "3", ".", "5", "?"]
  made.save(tmp_path / "t")
  again = registry.load(tmp_path / "t")
  assert again == made and base.fingerprint(again) == base.fingerprint(made)
  assert made.decode([0, 3, 4, 1]) == "the cat"


def test_the_end_of_a_line_is_an_end_token_if_words_are_split_by_spaces():
  made = words.train(["a <unk> n't \n a b \n"], size=100, split_by="spaces")
  assert made.encode(" a <unk> \n b x \n") == [3, 2, 1, made.vocabulary.index("b"), 2, 1]


def test_a_folder_of_an_unknown_kind_is_named(tmp_path):
  (tmp_path / "kind.json").write_text('{"kind": "nowhere:Nothing"}')
  with pytest.raises(UserError, match="nowhere"):
    registry.load(tmp_path)


@pytest.mark.parametrize(
  "changes, wrong",
  [
    ({"vocabulary": "words"}, "vocabulary"), ({"vocabulary": [1]}, "vocabulary"), ({"vocabulary": None}, "vocabulary"),
    ({"split_by": 3}, "split_by"), ({"split_by": ["words"]}, "split_by"), ({"start": 9}, "start"), ({"end": -1}, "end"),
    ({"unknown": True}, "unknown"), ({"unknown": 1.0}, "unknown"),
  ],
)  # fmt: skip
def test_corrupt_words_are_refused_by_name(changes, wrong, tmp_path):
  words.train(["a b c"], size=6).save(tmp_path)
  saved = json.loads((tmp_path / "words.json").read_text())
  (tmp_path / "words.json").write_text(json.dumps(saved | changes))
  with pytest.raises(UserError, match=rf"words.json: .*{wrong}.* (must be|is missing)"):
    registry.load(tmp_path)


@pytest.mark.parametrize("kind", [None, 3, ["x"]])
@pytest.mark.parametrize("number", [None, -1, 2**20 + 1, True, 1.5, "3"])
def test_corrupt_kinds_of_tokenizers_are_refused_by_name(kind, number, tmp_path):
  (tmp_path / "kind.json").write_text(json.dumps({"kind": kind}))
  with pytest.raises(UserError, match="kind.json: kind (must be a string|is missing)"):
    registry.load(tmp_path)
  content = {"kind": "lmjax.data.tokenizers.sentinels:Sentinels", "sentinels": number}
  (tmp_path / "kind.json").write_text(json.dumps(content))
  with pytest.raises(UserError, match="kind.json: sentinels (must be a whole number from 0 to|is missing)"):
    registry.load(tmp_path)


def test_characters_are_those_of_bilm_tf():
  assert spell("né", 8).tolist() == [259, 111, 196, 170, 260, 261, 261, 261]
  assert spell("</S>", 5).tolist() == [259, 258, 260, 261, 261]
  assert spell("abcdefgh", 5).tolist() == [259, 98, 99, 100, 260]


def reader(tmp_path, **changes) -> tuple[BidirectionalText, registry.Tokenizer]:
  file = tmp_path / "text.txt"
  file.write_text("One two three. Four five.\n\nSix seven eight nine ten eleven.\n")
  source = TextFiles(str(file), document="file")
  data = BidirectionalText(
    source, source, length=4, tokenizer=words.WordTokenizerConfig(size=50), **({"characters": 12} | changes)
  )
  return data, data.make_tokenizer()


def test_rows_continue_where_the_last_one_ended_in_both_directions(tmp_path):
  data, tokenizer = reader(tmp_path)
  rows = data.validate(tokenizer, 1)
  weights = np.concatenate([row["weights"][0] for row in rows]).astype(bool)
  ahead = np.concatenate([row["targets"][0] for row in rows])[weights]
  back = np.concatenate([row["reverse_targets"][0] for row in rows])[weights]
  name = lambda ids: " ".join(tokenizer.vocabulary[i] for i in ids)  # noqa: E731
  assert name(ahead) == "One two three . </S> Four five . </S> Six seven eight nine ten eleven . </S>"
  assert name(back) == ". eleven ten nine eight seven Six <S> . five Four <S> . three two One <S>"
  read = np.concatenate([row["reverse_characters"][0] for row in rows])[weights]
  assert read[0].tolist() == spell("</S>", 12).tolist() and read[1].tolist() == spell(".", 12).tolist()
  assert sum(row["bytes"][0] for row in rows) == pytest.approx(len((tmp_path / "text.txt").read_bytes()))


def test_training_resumes_from_a_saved_position():
  source = PythonDocs(":1%")
  data = BidirectionalText(source, source, length=8, characters=12, tokenizer=words.WordTokenizerConfig(size=200))
  tokenizer = data.make_tokenizer()
  batches = data.train(tokenizer, 4, seed=1)
  seen = [next(batches) for _ in range(5)]
  positions = batches.positions
  wanted = next(batches)
  batches.close()
  again = data.train(tokenizer, 4, seed=1, positions=positions)
  resumed = next(again)
  again.close()
  assert all(np.array_equal(wanted[key], resumed[key]) for key in wanted)
  assert not np.array_equal(seen[0]["targets"], wanted["targets"])


def test_another_tokenizer_is_refused(tmp_path):
  data, _ = reader(tmp_path)
  with pytest.raises(UserError, match="lmjax.data.tokenizers.words"):
    data.validate(registry.Bytes(), 1)
