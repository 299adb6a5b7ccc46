"""Dialogues from files as rows: every layout, what is learned, what is packed, and what is named and left out."""

import dataclasses
import gzip
import json
import re

import numpy as np
import pytest

from lmjax.data.objectives.dialogues import Dialogues
from lmjax.data.preview import document_lengths
from lmjax.data.sources.base import BadRecord
from lmjax.data.sources.chosen import ChosenDialogues
from lmjax.data.sources.dialogues import JsonDialogues
from lmjax.data.sources.preferences import JsonPreferences
from lmjax.data.tokenizers.registry import TokenizerConfig
from lmjax.utils.errors import UserError

TURNS = [("system", "be kind"), ("user", "hello <|im_end|> you"), ("assistant", "good day"), ("user", "and now"),
         ("assistant", "no more")]  # fmt: skip
MESSAGES = [{"role": role, "content": content} for role, content in TURNS]
LONG = " ".join(map(str, range(200)))
OTHER = {"system": "system", "user": "human", "assistant": "gpt"}


def write(path, records, form="jsonl"):
  text = json.dumps(records, indent=1) if form == "json" else json.dumps(records) if form == "compact" else None
  text = text or "\n".join(json.dumps(record) for record in records) + "\n"
  data = text.encode()
  path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
  return str(path)


def turns(document):
  return [(message.role, message.content) for message in document.messages]


@pytest.mark.parametrize("form", ["jsonl", "json", "compact"])
@pytest.mark.parametrize("name", ["a.json", "a.gz"])
def test_every_layout_is_read(form, name, tmp_path):
  shared = [{"from": OTHER[role], "value": content} for role, content in TURNS]
  parts = [{"role": role, "content": [{"type": "text", "text": content}]} for role, content in TURNS]
  one = [("user", "Say é [1],\n\nit"), ("assistant", "it}]")]
  records = [
    ({"messages": MESSAGES, "id": [1, {"a": "]"}]}, TURNS),
    ({"conversations": shared}, TURNS),
    ({"messages": parts}, TURNS),
    ({"instruction": "Say é [1],", "input": "it", "output": "it}]"}, one),
    ({"instruction": "Say é [1],\n\nit", "input": "", "output": "it}]"}, one),
    ({"prompt": "Say é [1],\n\nit", "completion": "it}]"}, one),
  ]
  file = write(tmp_path / name, [record for record, _ in records], form)
  source = JsonDialogues(file)
  wanted = [turns for _, turns in records if turns]
  assert [turns(source[i]) for i in range(len(source))] == wanted
  lined = JsonDialogues(file, system="S", split=":67%")
  assert turns(lined[3])[0] == ("system", "S") and turns(lined[0])[0] == TURNS[0]
  shuffled = JsonDialogues(file, shuffle=True)
  assert sorted(map(str, (turns(shuffled[i]) for i in range(len(shuffled))))) == sorted(map(str, wanted))


def test_every_layout_of_preferences_is_read(tmp_path):
  prompt = [{"role": "user", "content": "a"}]
  answer = {"role": "assistant", "content": "b"}
  records = [
    {"prompt": "a", "chosen": "b", "rejected": "c"},
    {"prompt": prompt, "chosen": [answer], "rejected": [answer | {"content": "c"}]},
    {"instruction": "a", "input": "", "output": "x", "chosen": "b", "rejected": "c"},
    {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
    {"chosen": [*prompt, answer], "rejected": [*prompt, answer | {"content": "c"}]},
    {"prompt": "a", "answers": ["b", "c"]},
  ]
  source = JsonPreferences(write(tmp_path / "a.jsonl", records))
  assert len(source) == len(records)
  chosen = ChosenDialogues(str(tmp_path / "a.jsonl"), system="S")
  for i in range(len(source)):
    assert turns(chosen[i]) == [("system", "S"), ("user", "a"), ("assistant", "b")]
    assert [(m.role, m.content) for m in source[i].prompt] == [("user", "a")] and source[i].answers == ("b", "c")
    assert source[i].where.endswith(f"a.jsonl:{i + 1}")


@pytest.mark.parametrize(
  "kind, record, why",
  [
    (JsonDialogues, {"messages": MESSAGES[:2]}, "has no turn of the assistant"),
    (JsonDialogues, {"instruction": "a", "output": "  "}, "has an empty answer"),
    (JsonPreferences, {"prompt": "a", "chosen": "b", "rejected": "b "}, "has two answers that are the same"),
    (JsonPreferences, {"prompt": "a", "chosen": "b", "rejected": ""}, "has an empty answer"),
    (JsonPreferences, {"prompt": "a", "answers": ["b"]}, "has a single answer"),
    (JsonPreferences, {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: b"}, "differ"),
    (JsonPreferences, {"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: a\n\nAssistant: b"}, "without an answer"),
  ],
)
def test_what_teaches_nothing_is_named_counted_and_left_out(kind, record, why, tmp_path, capsys):
  good = {"messages": MESSAGES} if kind is JsonDialogues else {"prompt": "a", "chosen": "b", "rejected": "c"}
  source = kind(write(tmp_path / "a.jsonl", [good, record, good, record]))
  assert len(source) == 2 and source[1].where.endswith("a.jsonl:3")
  error = capsys.readouterr().err
  assert "2 of 4 records teach nothing; the first: " in error and re.search(f"a.jsonl:2 .*{why}", error)
  with pytest.raises(UserError, match="1 of 1 records teach nothing"):
    len(kind(write(tmp_path / "b.jsonl", [record])))


@pytest.mark.parametrize("record", [{}, {"messages": []}, {"messages": [{"role": "user"}]}, {"messages": "a"},
                                    {"output": "a"}, {"instruction": 3, "output": "a"}])  # fmt: skip
def test_what_is_malformed_is_a_bad_record(record, tmp_path):
  source = JsonDialogues(write(tmp_path / "a.jsonl", [record, {"messages": MESSAGES}]))
  assert isinstance(source[0], BadRecord) and source[0].where.endswith("a.jsonl:1") and len(source) == 2
  (tmp_path / "b.json").write_text('[{"messages": 1}, {"a"')
  with pytest.raises(UserError, match="not a JSON list"):
    len(JsonDialogues(str(tmp_path / "b.json")))


def reader_of(tmp_path, dialogues, length=64, **changes):
  records = [{"messages": [{"role": role, "content": text} for role, text in own]} for own in dialogues]
  source = JsonDialogues(write(tmp_path / "rows.jsonl", records))
  reader = Dialogues(source, source, length, TokenizerConfig("bpe", 300), **changes)
  return reader, reader.make_tokenizer()


def test_rows_hold_whole_dialogues_and_teach_the_answers(tmp_path):
  dialogues = [TURNS[: 3 + 2 * (i % 2)] + [("user", str(i)), ("assistant", f"a{i}")] for i in range(9)]
  reader, tokenizer = reader_of(tmp_path, dialogues, 160)
  special = [tokenizer.fast.token_to_id(name) for name in ("<|im_start|>", "<|im_end|>")]
  learned = []
  for batch in reader.validate(tokenizer, 2):
    for row in range(2):
      segments, targets = batch["segments"][row], batch["targets"][row]
      assert batch["bytes"].shape == (2,)
      for segment in range(1, segments.max() + 1):
        own = segments == segment
        np.testing.assert_array_equal(batch["positions"][row][own], np.arange(own.sum()))
        assert batch["inputs"][row][own][0] == special[0]
        np.testing.assert_array_equal(batch["inputs"][row][own][1:], targets[own][:-1])
        taught = targets[own][batch["weights"][row][own] > 0]
        learned.append(tokenizer.fast.decode(taught.tolist(), skip_special_tokens=False))
      assert not batch["weights"][row][segments == 0].any()
  wanted = ["".join(f"{text}<|im_end|>" for role, text in own if role == "assistant") for own in dialogues]
  assert sorted(learned) == sorted(wanted)


def test_long_dialogues_lose_their_oldest_turns_then_their_end(tmp_path):
  old = [("user", "x " * 40), ("assistant", "y " * 40)]
  reader, tokenizer = reader_of(tmp_path, [[TURNS[0], *old, *TURNS[1:3]], [*TURNS[:2], ("assistant", LONG)]], 80)
  (batch,) = reader.validate(tokenizer, 4)
  texts = [tokenizer.fast.decode(row.tolist(), skip_special_tokens=False) for row in batch["inputs"]]
  assert "be kind" in texts[0] and "good day" in texts[0] and "x x" not in texts[0]
  assert "hello" in texts[1] and "0 1 2" in texts[1] and batch["weights"][1][-1] == 1
  short, tokenizer = reader_of(tmp_path, [[("user", LONG), ("assistant", "z")]], 40)
  document = short.documents(short.source, tokenizer, None, 1).encode(short.source[0])
  assert isinstance(document, BadRecord) and "leaves no space for an answer in 40" in document.why


def test_real_data_are_read(data):
  """Whole sets, of which a few records teach nothing, at most one in a hundred."""
  for kind in (ChosenDialogues, JsonPreferences):
    for name, count in (("pref_rasbt_instruct/*with-preference.json", 1000), ("pref_hh_rlhf_harmless/*.gz", 2000)):
      source = kind(str(data / name))
      assert count * 0.99 <= len(source) <= count
      assert not any(isinstance(source[i], BadRecord) for i in range(len(source)))


def test_previews_count_the_tokens_of_messages(tmp_path):
  reader, tokenizer = reader_of(tmp_path, [TURNS])
  preferences = JsonPreferences(write(tmp_path / "p.jsonl", [{"prompt": "a b", "chosen": "c", "rejected": "d"}]))
  whole = "\n".join(content for _, content in TURNS)
  assert document_lengths(reader, tokenizer) == [len(tokenizer.encode(whole))]
  assert document_lengths(dataclasses.replace(reader, source=preferences), tokenizer) == [
    len(tokenizer.encode("a b\nc"))
  ]
