"""The formats of dialogues and comparisons: JSON lines and lists, and saved conversations."""

import json
import pathlib
import types

from lmjax.data.sources.chosen import ChosenDialogues
from lmjax.data.sources.dialogues import JsonDialogues
from lmjax.data.sources.judgements import JsonJudgements
from lmjax.data.sources.preferences import JsonPreferences
from lmjax.inference.chat import Chat

MESSAGES = [{"role": "user", "content": "naïve?"}, {"role": "assistant", "content": [{"type": "text", "text": "yes"}]}]


def make(folder: pathlib.Path) -> None:
  """Writes a file of each format."""
  dialogues = [
    {"messages": MESSAGES},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    {"instruction": "add", "input": "1, 2", "output": "3"},
  ]
  comparisons = [
    {"prompt": "a", "chosen": "b", "rejected": "c"},
    {"prompt": MESSAGES[:1], "answers": ["b", "c", "d"]},
    {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
  ]
  judgements = [
    {"prompt": "a", "completion": "b", "label": True},
    {"prompt": MESSAGES[:1], "completion": MESSAGES[1:], "label": False},
  ]
  for name, records in (("dialogues", dialogues), ("comparisons", comparisons), ("judgements", judgements)):
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / f"{name}.json").write_text(json.dumps(records, indent=1))
  (folder / "saved.json").write_text(json.dumps({"messages": MESSAGES}))


def read(folder: pathlib.Path) -> None:
  """Reads all of them."""
  kinds = [(kind, "comparisons") for kind in (JsonPreferences, ChosenDialogues, JsonJudgements)]
  for kind, name in (*kinds, (JsonDialogues, "dialogues"), (JsonJudgements, "judgements")):
    for form in ("jsonl", "json"):
      source = kind(str(folder / f"{name}.{form}"), system="s")
      for i in range(len(source)):
        document = source[i]
        assert all(isinstance(part, str) for part in (document.where, *getattr(document, "answers", ())))
  chat = types.SimpleNamespace(messages=[])
  Chat.load(chat, folder / "saved.json")
  assert all(isinstance(message.content, str) for message in chat.messages)
