"""Items of a suite in a corpus: planted ones are found, and nothing else, however the corpus is cut."""

import gzip
import json
import pathlib
import random
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from etils import epath

from lmjax import config
from lmjax.data.sources.records import Parquet
from lmjax.data.sources.write_shards import Preparation
from lmjax.data.tokenizers.base import Bytes
from lmjax.evals import corpus
from lmjax.evals.suites import contamination, items, memorisation
from lmjax.evals.suites.contamination import NGrams, choose_size, words
from lmjax.evals.suites.memorisation import Substrings
from lmjax.inference import corpus_checks
from lmjax.inference import suite as suites
from lmjax.utils.errors import UserError
from tests.evals.test_suites import TASK, loaded, write  # noqa: F401

WORDS = [f"{a}{b}" for a in ("ka", "lo", "mi", "ru", "té", "“so", "o'") for b in ("n", "ver", "xx,", "—", "t.", "S!")]


def text(rng, count):
  return "".join(rng.choice(WORDS) + rng.choice((" ", " ", " ", "\n", "  ")) for _ in range(count))


@pytest.fixture
def planted(tmp_path):
  """A task of 30 items, and a corpus of two files and a gzipped one with items 3, 11, 17 and 25 in it."""
  rng = random.Random(0)
  docs = [
    {"question": text(rng, rng.randrange(20, 40)).strip(), "choices": ["yes", "no", "else"], "gold": 0}
    for _ in range(30)
  ]
  (task,) = suites.choose(str(write(tmp_path, docs, doc_to_text="Question: {{question}}\nAnswer:")))
  made = corpus_checks.plain_items(task, None, None, literals=False)
  wanted = {3: "a.txt", 11: "a.txt", 17: "b.jsonl", 25: "c.txt.gz"}
  bodies = {name: [text(rng, 2000) for _ in range(3)] for name in ("a.txt", "b.jsonl", "c.txt.gz")}
  for number, name in wanted.items():
    shouted = docs[number]["question"].upper().replace("\n", " \n ")
    bodies[name].insert(1, f"{text(rng, 5)} {shouted} {text(rng, 5)}")
  (tmp_path / "a.txt").write_text("\n".join(bodies["a.txt"]))
  (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": body}) + "\n" for body in bodies["b.jsonl"]))
  with gzip.open(tmp_path / "c.txt.gz", "wt") as file:
    file.write("\n".join(bodies["c.txt.gz"]))
  return task, made, wanted, [str(tmp_path / name) for name in bodies]


def slow_count(texts, size, grams):
  """Counts N-grams of whole documents, one at a time."""
  counts = {}
  for body in texts:
    parts = words(body.encode())
    for at in range(len(parts) - size + 1):
      gram = b" ".join(parts[at : at + size])
      if gram in grams:
        counts[grams[gram]] = counts.get(grams[gram], 0) + 1
  return counts


def test_planted_items_are_found_and_nothing_else(planted, tmp_path):
  """In plain, JSON and gzipped files, in another case and with other white space; the counts are those of a search of
  whole documents, with parts and blocks of any size.
  """
  task, made, wanted, files = planted
  grams = NGrams()
  overlap = grams.add(task, made)
  plain, lines, zipped = (pathlib.Path(file).read_bytes() for file in files)
  documents = [plain.decode(), *(json.loads(line)["text"] for line in lines.decode().splitlines())]
  documents.append(gzip.decompress(zipped).decode())
  exact = slow_count(documents, overlap.size, grams.numbers)
  for size, block in ((corpus.PART, corpus.BLOCK), (5000, 700), (1777, 64), (40, 13)):
    counts: dict = {}
    for part in corpus.split(files, size):
      for number, count in grams.count(corpus.blocks(part, grams.beyond, block)).items():
        counts[number] = counts.get(number, 0) + count
    assert counts == exact, (size, block)
  assert {i for i, own in enumerate(overlap.matches(counts)) if own} == set(wanted)
  for number in wanted:
    own, question = len(overlap.matches(counts)[number]), words(made[number].doc["question"].encode())
    assert own == len(question) - overlap.size + 1, "all of it, but not with its answers"


def test_a_search_is_resumed_and_shared(planted, tmp_path, monkeypatch):
  """Complete parts are not read again; several processes count what one does; another corpus starts anew."""
  task, made, _, files = planted
  grams = NGrams()
  grams.add(task, made)
  monkeypatch.setattr(corpus, "PART", 9000)
  parts, read = corpus.split(files, 9000), []
  whole = corpus.search(parts, grams, grams.key(), tmp_path / "one", 1)
  assert whole == corpus.search(parts, grams, grams.key(), tmp_path / "two", 2) and len(parts) > 4
  lines = (tmp_path / "one").read_text().splitlines(keepends=True)
  (tmp_path / "one").write_text("".join(lines[:4]) + lines[4][:7])  # a kill while writing
  count = NGrams.count
  monkeypatch.setattr(NGrams, "count", lambda self, blocks: read.append(1) or count(self, blocks))
  assert corpus.search(parts, grams, grams.key(), tmp_path / "one") == whole and len(read) == len(parts) - 3
  assert corpus.search(parts, grams, grams.key(), tmp_path / "one") == whole and len(read) == len(parts) - 3
  odd = ('{"part": 0, "counts": []}', '{"part": [0], "counts": {}}', '{"part": 1, "counts": {"1": "x"}}', "[]", "{}")
  (tmp_path / "one").write_text("\n".join([lines[0].strip(), *odd]) + "\n")  # nothing is taken from what was changed
  read.clear()
  assert corpus.search(parts, grams, grams.key(), tmp_path / "one") == whole and len(read) == len(parts)
  read.clear()
  corpus.search(parts, grams, "another", tmp_path / "one")
  assert len(read) == len(parts)


def test_whatever_training_reads_is_a_corpus(planted, tmp_path, monkeypatch):
  """Parquet, UTF-16 and JSON without a suffix, pairs, a config, a run and prepared data: the same items in each."""
  task, made, wanted, _ = planted
  monkeypatch.chdir(tmp_path)
  rng, documents = random.Random(2), []
  for number in range(30):
    documents += [text(rng, 60), text(rng, 5) + made[number].doc["question"] + " " + text(rng, 5)]
  documents = [body for i, body in enumerate(documents) if i % 2 == 0 or i // 2 in wanted]
  pq.write_table(pa.table({"text": documents}), "c.parquet", row_group_size=5)
  pathlib.Path("utf16").write_text("\n".join(documents), encoding="utf-16")
  pathlib.Path("lines").write_text("".join(json.dumps({"text": body}) + "\n" for body in documents))
  pairs = [{"source": "x", "target": {"a": body}["a"]} for body in documents]
  pathlib.Path("pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
  pathlib.Path("c.py").write_text(
    "from ml_collections import ConfigDict\n"
    "def get_config(files='pairs.jsonl'):\n"
    "  pairs = dict(kind='lmjax.data.sources.pairs:JsonPairs', files=files)\n"
    "  data = dict(kind='lmjax.data.objectives.seq2seq:TextToText', length=8, target_length=8, source=pairs)\n"
    "  rest = dict(steps=1, batch=1, model={}, task={})\n"
    "  return ConfigDict(dict(data=data | dict(validation=pairs), **rest))\n"
  )
  pathlib.Path("run").mkdir()
  pathlib.Path("run", "config.json").write_text(json.dumps(config.load("c.py:pairs.jsonl")))
  prepared = Preparation(Parquet("c.parquet"), Bytes())
  assert list(prepared.run("prepared")) and Bytes().save(epath.Path("prepared/tokenizer")) is None
  for name in ("c.parquet", "utf16", "lines", "c.py:pairs.jsonl", "run", "prepared"):
    grams = NGrams()
    overlap = grams.add(task, made)
    opened = corpus_checks.Corpus([name]).open()
    for size, workers in ((corpus.PART, 1), (2000, 2 if name == "c.parquet" else 1)):
      parts, state = corpus.split(opened, size), tmp_path / f"{name}.{size}.state"
      counts = corpus.search(parts, grams, grams.key(), state, workers)
      assert {i for i, own in enumerate(overlap.matches(counts)) if own} == set(wanted), (name, size)
      assert size > 2000 or name == "utf16" or len(parts) > 3
      monkeypatch.setattr(NGrams, "count", None)  # nothing is read again
      assert corpus.search(corpus.split(opened, size), grams, grams.key(), state) == counts
      monkeypatch.undo()
      monkeypatch.chdir(tmp_path)
  docs = memorisation.prompts(corpus_checks.Corpus(["utf16"]).open(), 5)
  assert all(doc["prompt"] in "\n".join(documents) for doc in docs)


def test_frequent_ngrams_and_short_items_say_nothing(tmp_path):
  """What occurs more than ten times is ignored; an item of fewer than N words is not checked."""
  docs = [{"question": f"one two three four five six seven eight nine {i} " * (i > 0) + "ten", "choices": ["a"],
           "gold": 0} for i in range(3)]  # fmt: skip
  (task,) = suites.choose(str(write(tmp_path, docs)))
  grams = NGrams()
  overlap = grams.add(task, corpus_checks.plain_items(task, None, None, literals=False))
  assert overlap.size == 8 and overlap.grams[0] == ()
  for times, dirty in ((0, set()), (1, {1, 2}), (10, {1, 2}), (11, set())):
    (tmp_path / "c.txt").write_text("One two three, four five six seven eight nine.\n" * times + "\n")
    counts = {}
    for part in corpus.split([str(tmp_path / "c.txt")]):
      counts = grams.count(corpus.blocks(part, grams.beyond))
    assert {i for i, own in enumerate(overlap.matches(counts)) if own} == dirty, times


def test_a_word_that_a_block_cuts_is_not_taken_for_another():
  grams = NGrams()
  grams.numbers[b"a b c d e f g sta"] = 0
  cut, end = (corpus.Block(b"a b c d e f g sta", 2, last=last) for last in (False, True))
  assert grams.count(iter([cut])) == {} and grams.count(iter([end])) == {0: 1}


def test_words_and_sizes():
  assert [w.decode() for w in words("Don't — “stop”, Élan vital…\u00a0x_y".encode())] == (
    ["dont", "stop", "élan", "vital", "xy"]
  )
  template = items.without_literals("Q: {{a}} and{% if b %} b: {{b}}{% endif %}\nA:")
  assert template == " {{a}} {% if b %} {{b}}{% endif %} " and items.without_literals("query") == "query"
  assert choose_size([3] * 9) == 8 and choose_size([10] * 9) == 10 and choose_size([99] * 9) == 13
  assert choose_size([9] + [50] * 99) == 13, "N is the 5th percentile, not the least"


def test_substrings_are_found_verbatim(tmp_path):
  """Each at every place, however the corpus is cut; a changed case or space is not the same, but the end of a line."""
  rng = random.Random(1)
  body = text(rng, 3000).encode()
  wanted = [body[at : at + 70 + at % 50] for at in (0, 500, 7001, len(body) - 90)] + [b"not in there at all"]
  wanted += [wanted[1].replace(b" ", b"  ", 1), wanted[2].swapcase(), wanted[0][:-3] + b"zzz"]
  for strings in (wanted, [s for s in wanted if len(s) > 64]):
    search = Substrings(strings)
    spaced = body.replace(b"\n", b" ")
    exact = {i: spaced.count(s) for i, s in enumerate(search.strings) if s in spaced}
    assert len(exact) == 4
    (tmp_path / "c.txt").write_bytes(body)
    for size, block in ((corpus.PART, corpus.BLOCK), (900, 100)):
      counts: dict = {}
      for part in corpus.split([str(tmp_path / "c.txt")], size):
        for number, count in search.count(corpus.blocks(part, search.beyond, block)).items():
          counts[number] = counts.get(number, 0) + count
      assert counts == exact


def test_scores_of_clean_and_dirty_items(loaded, planted, tmp_path):  # noqa: F811
  """With the interval of their difference; Min-K % is the mean of the lowest log-probabilities."""
  task, made, wanted, files = planted
  source = corpus_checks.Corpus(files)
  suite = suites.Suite([task], tmp_path / "out", corpus=source, min_k=20.0)
  result = suites.evaluate(loaded, suite)["tasks"]["colours"]
  overlap = result["contamination"]
  assert overlap["dirty_items"] == sorted(wanted) and (overlap["clean"], overlap["unchecked"]) == (26, 0)
  records = [json.loads(line) for line in (tmp_path / "out" / "colours.jsonl").read_text().splitlines()[1:]]
  by_part = {dirty: [r["acc"] for r in records if (r["item"] in wanted) == dirty] for dirty in (True, False)}
  scores = {part: overlap["metrics"][part]["acc"] for part in ("all", "clean", "dirty", "difference")}
  assert scores["dirty"]["value"] == np.mean(by_part[True]) and scores["clean"]["value"] == np.mean(by_part[False])
  assert scores["difference"]["value"] == scores["dirty"]["value"] - scores["clean"]["value"]
  assert scores["difference"]["low"] <= scores["difference"]["value"] <= scores["difference"]["high"]
  lines = [json.loads(line) for line in (tmp_path / "out" / "contamination.jsonl").read_text().splitlines()]
  assert [line["item"] for line in lines] == sorted(wanted) and lines[0]["count"] == 1
  html = (tmp_path / "out" / "results.html").read_text()
  assert all(text in html for text in ("colours, clean", "colours, dirty", "colours, difference", "Min-K %"))
  value = result["min_k"]
  assert value["low"] < value["value"] < value["high"] < 0 and 0 <= value["auc"] <= 1 and len(value["items"]) == 30
  assert suites.evaluate(loaded, suite)["tasks"]["colours"]["min_k"] == value
  assert corpus_checks.lowest_mean(np.arange(-10.0, 0.0), 20) == -9.5
  assert corpus_checks.auc({0: 2.0, 1: 1.0, 2: 3.0, 3: 0.0}, [0, 2]) == 1 and corpus_checks.auc({0: 1.0}, [0]) is None


@pytest.mark.parametrize("content", ['{"no_text": 1}\n', "[1]\n", '{"text"\n'])
def test_a_corpus_that_cannot_be_read_is_refused(tmp_path, content):
  (tmp_path / "c.jsonl").write_text('{"text": "a"}\n' + content)
  with pytest.raises(UserError, match="is not a JSON object with a `text`"):
    list(corpus.blocks(corpus.split([str(tmp_path / "c.jsonl")])[0], 8))
  with pytest.raises(UserError, match="no file matches"):
    corpus.split([str(tmp_path / "none*")])
  (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"some words " * 99)[:-9])
  with pytest.raises(UserError, match="cannot be read"):
    list(corpus.blocks(corpus.Part(str(tmp_path / "c.txt.gz")), 8))


@pytest.mark.long
def test_ten_items_in_27_mb(data, tmp_path, capsys):
  """Ten items of PIQA in 20 novels: exactly those ten."""
  (task,) = suites.choose("piqa")
  made = corpus_checks.plain_items(task, str(data), None, literals=False)
  grams = NGrams()
  overlap = grams.add(task, made)
  fit = [item.number for item in made if len(words(contamination.text_of(task, item).encode())) >= overlap.size]
  assert len(fit) >= 0.9 * len(made)
  chosen = sorted(random.Random(0).sample(fit, 10))
  books = sorted((data / "lm_gutenberg_books").glob("*.gz"))
  for i, book in enumerate(books):
    body = gzip.decompress(book.read_bytes()).decode()
    if i < 10:
      at = body.index("\n", len(body) // (i + 2))
      item = made[chosen[i]]
      question, answer = item.doc["goal"], item.choices[item.target[0]]
      body = f"{body[:at]}\n{(question.upper(), question)[i % 2]} - {answer}\n{body[at:]}"
    (tmp_path / f"{book.stem}").write_text(body)
  parts = corpus.split([str(tmp_path / "*.txt")])
  size = sum(part.end for part in parts)
  start = time.process_time()
  counts = corpus.search(parts, grams, grams.key(), tmp_path / "state")
  seconds = time.process_time() - start
  with capsys.disabled():
    print(f"{size / 1e6:.1f} MB in {seconds:.2f} s of one core: {size / 1e6 / seconds:.1f} MB/s; N = {overlap.size}, "
          f"{len(grams.numbers)} N-grams")  # fmt: skip
  found = [i for i, own in enumerate(overlap.matches(counts)) if own]
  assert found == chosen and size > 26e6
