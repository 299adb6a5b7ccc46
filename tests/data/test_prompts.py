"""Prompts: what is read of records, and the rows that a policy continues."""

import json

import numpy as np
import pytest

from lmjax.data.chat.format import ChatFormat
from lmjax.data.chat.template import Message
from lmjax.data.objectives.prompts import Prompts
from lmjax.data.sources.base import BadRecord
from lmjax.data.sources.prompts import JsonPrompts, Prompt
from lmjax.data.tokenizers.registry import TokenizerConfig
from lmjax.utils.errors import UserError
from tests.tasks.rl.policies import reader_of

RECORDS = [
  {"prompt": "2 + 2?"},
  {"instruction": "Add.", "input": "2 + 2", "output": "4"},
  {"messages": [{"role": role, "content": role[0]} for role in ("system", "user", "assistant")]},
  {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"},
  {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi\n\nAssistant: What?"},
]  # fmt: skip
WANTED = ["2 + 2?", "Add.\n\n2 + 2", "s|u", "2 + 2?", "Hi"]


def source_of(folder, *records, **changes):
  path = folder / "records.jsonl"
  path.write_text("".join(json.dumps(record) + "\n" for record in records))
  return JsonPrompts(str(path), **changes)


def test_the_turns_before_the_last_answer_are_read(tmp_path):
  source = source_of(tmp_path, *RECORDS)
  assert ["|".join(m.content for m in source[i].messages) for i in range(len(source))] == WANTED
  source = source_of(tmp_path, *RECORDS, system="be kind")
  assert [source[i].messages[0].content for i in range(3)] == ["be kind", "be kind", "s"]


def test_records_without_a_prompt_are_named(tmp_path, capsys):
  source = source_of(tmp_path, {"messages": [{"role": "assistant", "content": "a"}]}, RECORDS[0], {"text": "a"})
  assert len(source) == 2 and isinstance(source[1], BadRecord)
  assert "records.jsonl:1 has no turn of the user" in capsys.readouterr().err


def test_a_row_is_a_prompt_up_to_its_answer_padded_on_the_left():
  reader, tokenizer = reader_of()
  batch = reader.validate(tokenizer, 6, 1)[0]
  for row, prompt in enumerate(reader.source):
    ids = ChatFormat(tokenizer).encode(prompt.messages, prompt=True).ids
    assert batch["inputs"][row, -len(ids) :].tolist() == ids.tolist()
    for key in ("segments", "weights"):
      assert batch[key][row].tolist() == [0] * (48 - len(ids)) + [1] * len(ids)
  assert not batch["inputs"][batch["weights"] == 0].any()


def test_of_a_long_prompt_the_oldest_turns_are_left_out():
  turns = [Message("user", "a" * 30), Message("assistant", "b" * 30), Message("user", "c")]
  long = [Prompt((Message("system", "s"), *turns), "test:0"), Prompt((Message("user", "d" * 99),), "test:1")]
  reader, tokenizer = reader_of(long[:1], length=60)
  documents = reader.documents(long, tokenizer, None, 1)
  kept, bad = (documents.encode(prompt) for prompt in long)
  short = ChatFormat(tokenizer).encode([Message("system", "s"), turns[-1]], prompt=True).ids
  np.testing.assert_array_equal(kept[0], short)
  assert isinstance(bad, BadRecord) and "tokens, and a prompt 48 at most" in bad.why


def test_batches_resume_where_they_stopped():
  reader, tokenizer = reader_of()
  first = reader.train(tokenizer, 2, seed=1)
  rows = [next(first)["inputs"] for _ in range(4)]
  again = reader.train(tokenizer, 2, seed=1)
  for _ in range(2):
    next(again)
  resumed = reader.train(tokenizer, 2, seed=1, positions=again.positions)
  np.testing.assert_array_equal(next(resumed)["inputs"], rows[2])
  for batches in (first, again, resumed):
    batches.close()


def test_mistakes_are_named():
  source = [Prompt((Message("user", "a"),))]
  with pytest.raises(ValueError, match="prompt_tokens"):
    Prompts(source, source, 8, prompt_tokens=8)
  reader = Prompts(["text"], ["text"], 32, TokenizerConfig("bpe", 290))
  with pytest.raises(UserError, match="use a source of lmjax.data.sources.prompts"):
    reader.make_tokenizer()
