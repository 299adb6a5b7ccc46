"""Fusion-in-Decoder: paragraphs are read apart, the answer sees all of them, and their order does not matter."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import config, experiment, storage
from lmjax.__main__ import main
from lmjax.data.objectives.paragraphs import Paragraphs, encode_paragraphs, join_paragraphs
from lmjax.data.sources.examples import Question
from lmjax.data.tokenizers.base import Bytes
from lmjax.data.tokenizers.registry import TokenizerConfig
from lmjax.evals.written_answers import WrittenAnswers, write_answers
from lmjax.inference import ask
from lmjax.inference.chunks import Chunk
from lmjax.inference.retrieval import Hit
from lmjax.models.encoder_decoder import EncoderDecoder
from lmjax.models.fusion_in_decoder import Config, FusionInDecoder
from lmjax.parallel.sharding import use_layout
from lmjax.storage.base import LoadedModel
from lmjax.tasks.seq2seq import Seq2Seq
from lmjax.testing import init_params
from lmjax.utils.errors import UserError
from tests.families import LAYERS, SHAPE, WAVES
from tests.storage.huggingface_folders import write_model

pytest.importorskip("bm25s", reason="needs pip install -e '.[retrieval]'")
QUESTIONS = [
  Question("0", "a b", "c d e a", (("c d", 0),)), Question("1", "e e", "e b f", (("b", 2),)),
  Question("2", "f a", "g f h a", (("g", 0),)), Question("2-unanswerable", "f a", "e b f", ()),
]  # fmt: skip


def reader(questions=QUESTIONS, length=120, **changes):
  settings = dict(question_length=4, negatives=2, target_length=8) | changes
  return Paragraphs(questions, questions, length, TokenizerConfig("bytes"), **settings)


@pytest.fixture(scope="module", params=["relative", "sinusoidal"])
def given(request):
  """A model, its parameters, and a batch of two questions with three paragraphs and with two."""
  shape = SHAPE | LAYERS | dict(depth=2, vocabulary=300) | (WAVES if request.param == "sinusoidal" else {})
  task = Seq2Seq(FusionInDecoder(Config(**shape, paragraph=40)), target_length=8)
  (batch,) = reader().for_model(task.model).validate(Bytes(), 2, 1)
  batch = {key: jnp.asarray(batch[key]) for key in task.spec(1, 1)}
  params = init_params(task, batch)
  rng = np.random.default_rng(0)
  return task, jax.tree.map(lambda p: p + 0.1 * rng.standard_normal(p.shape).astype(np.float32), params), batch


def vectors(given, **changes):
  task, params, batch = given
  return jax.jit(lambda batch: task.model.apply({"params": params["model"]}, batch, ("any",)))(batch | changes)


def test_a_paragraph_is_read_as_if_it_were_alone(given):
  _, _, batch = given
  whole = np.asarray(vectors(given).taps["source"])
  segments = np.asarray(batch["segments"])
  assert segments[0].max() == 3
  for number in (1, 2, 3):
    own = segments[0] == number
    alone = {key: np.zeros_like(batch[key]) for key in ("inputs", "positions", "segments")}
    for key in alone:
      alone[key][0, : own.sum()] = batch[key][0][own]
    np.testing.assert_allclose(vectors(given, **alone).taps["source"][0, : own.sum()], whole[0, own], atol=1e-5)


def test_the_order_of_paragraphs_does_not_matter_and_each_one_does(given):
  _, _, batch = given
  segments = np.asarray(batch["segments"][0])
  order = np.concatenate([np.arange(40) + 40 * block for block in (2, 0, 1)])
  moved = {key: batch[key].at[0].set(batch[key][0][order]) for key in ("inputs", "positions", "segments")}
  answer = np.asarray(vectors(given).tokens)
  np.testing.assert_allclose(vectors(given, **moved).tokens, answer, atol=1e-5)
  for number in (1, 2, 3):
    one = int(np.flatnonzero(segments == number)[-2])
    changed = batch["inputs"].at[0, one].set((batch["inputs"][0, one] + 1) % 200)
    other = np.asarray(vectors(given, inputs=changed).tokens)
    assert np.abs(other[0, 0] - answer[0, 0]).max() > 1e-4 and np.array_equal(other[1], answer[1]), number


def test_what_is_written_is_the_likeliest_token_after_each_prefix(given):
  """Decoding with a cache, beside sources of other lengths, equals forward passes over the row alone."""
  task, params, batch = given
  tokenizer, count = Bytes(), 6
  texts = (["c d e a", "e b", "x"], ["e b f"])
  sources = [encode_paragraphs(tokenizer, "a b c d e", paragraphs, 40, 4) for paragraphs in texts]
  written = write_answers(task.model, params["model"], tokenizer, sources, count)
  for source, text in zip(sources, written, strict=True):
    ids = [tokenizer.start]
    for _ in range(count):
      row = dict(zip(("inputs", "segments"), join_paragraphs(source, 40, 40 * len(source)), strict=True))
      row = {key: jnp.asarray(value)[None] for key, value in row.items()}
      row |= {"decoder_inputs": jnp.array([ids]), "decoder_segments": jnp.ones((1, len(ids)), jnp.int32)}
      hidden = task.model.apply({"params": params["model"]}, row).tokens
      ids.append(int(jnp.argmax(task.model.apply({"params": params["model"]}, hidden[0, -1], method="logits"))))
      if ids[-1] == tokenizer.end:
        break
    assert text == tokenizer.decode([i for i in ids[1:] if i != tokenizer.end]).strip()


def test_the_rows_of_questions():
  tokenizer, data = Bytes(), reader()
  documents = data.documents(QUESTIONS, tokenizer, None, 1)
  packer = data.packers(documents, [0])[0]
  (*paragraphs, target), size = documents.encode_text(QUESTIONS[0])
  texts = [tokenizer.decode(ids[:-1].tolist()) for ids in paragraphs]
  assert texts[0] == "question:a bcontext:c d e a" and all(text.startswith("question:a bcontext:") for text in texts)
  assert tokenizer.decode(target[:-1].tolist()) == "c d" and target[-1] == tokenizer.end and size == 3
  row, _ = packer.row(lambda number: documents.read(0, number), (0, 0))
  sizes = [len(ids) for ids in paragraphs]
  padded = [(n, size, [0] * (40 - size)) for n, size in enumerate(sizes, 1)]
  assert len(sizes) == 3 and row["segments"].tolist() == [i for n, size, rest in padded for i in [n] * size + rest]
  assert row["positions"].tolist() == [i for _, size, rest in padded for i in [*range(size), *rest]]
  assert row["decoder_inputs"].tolist() == [tokenizer.start, *target[:-1], *[0] * 4] and row["weights"].sum() == 4
  # Another question's paragraph has the answer to this one.
  assert documents.negatives(QUESTIONS[3], 4) == ["c d e a"] and documents.negatives(QUESTIONS[2], 0) == []
  (*_, target), size = documents.encode_text(QUESTIONS[3])
  assert target.tolist() == [tokenizer.end] and size == 0
  long = QUESTIONS[0]._replace(question="q" * 50, context="c" * 90, answers=(("c" * 30, 0),))
  (*paragraphs, target), _ = documents.encode_text(long)
  assert len(paragraphs[0]) == 40 and len(target) == 8
  assert tokenizer.decode(paragraphs[0][:13].tolist()) == "question:qqqq" and paragraphs[0][39] == tokenizer.end
  assert len(data.validate(tokenizer, 3)) == 2
  for wrong in (dict(target_length=0), dict(length=36), dict(question_length=40), dict(packed=True), dict(length=121)):
    with pytest.raises(ValueError, match="question"):
      reader(**wrong)


def test_what_is_no_question_is_refused():
  with pytest.raises(UserError, match="need questions"):
    reader().documents(["text"], Bytes(), None, 1).encode("text")


@pytest.mark.parametrize("model", [EncoderDecoder(Config(8, 8)), FusionInDecoder(Config(8, 8, paragraph=41))])
def test_model_and_data_agree_on_the_length_of_a_paragraph(model):
  own = reader()
  assert own.for_model(FusionInDecoder(Config(8, 8, paragraph=40))) is own
  with pytest.raises(UserError, match="model.paragraph=40"):
    own.for_model(model)


def test_a_saved_t5_is_where_it_starts(tmp_path):
  for kind in ("t5", "bert"):
    write_model(tmp_path / kind, kind)
  model = config.load(f"configs/fusion_in_decoder.py:start={tmp_path}/t5")["model"]
  assert model["length"] == 5 * model["paragraph"] == 1280 and model["kind"].endswith(":FusionInDecoder")
  with pytest.raises(UserError, match="bert is not an encoder-decoder"):
    config.load(f"configs/fusion_in_decoder.py:start={tmp_path}/bert")


def test_without_a_question_nothing_is_asked():
  wrong = [QUESTIONS[0]._replace(context=" ")]
  context = types.SimpleNamespace(data=reader(wrong), tokenizer=Bytes())
  with pytest.raises(UserError, match="no question with a paragraph"):
    WrittenAnswers().prepare(context)


def test_a_run_trains_and_shows_its_rows(tmp_path, capsys):
  folder = str(tmp_path / "run")
  settings = ["--config.steps=2", "--config.evals.every=2", "--config.checkpoint.every=2"]
  assert main(["train", "--config", "configs/fusion_in_decoder.py:debug", "--workdir", folder, *settings]) == 0
  printed = capsys.readouterr().out
  assert "dev:  exact" in printed and f"next: lmjax ask --index INDEX 'a question' --workdir {folder}" in printed
  assert main(["prepare", "--inspect", folder, "--rows", "1"]) == 0
  assert "question:Second?context:" in capsys.readouterr().out
  loaded = storage.open(folder).load()
  with use_layout(loaded.layout):
    reader = ask.make_reader(loaded, folder, max_new_tokens=4)
    answer = reader("Second?", [Hit(0, Chunk("a.txt", 1, 0, 7, "one two"), 0.9, 1.0)])
  start = f"configs/fusion_in_decoder.py:start={folder},steps=2"
  source = {"kind": "lmjax.data.sources.labelled_pairs:PythonDocQuestions"}
  settings = config.load(start, {"batch": "8"})
  settings["data"] |= {"source": source, "validation": source}
  assert experiment.build(settings).state(abstract=True) is not None
  assert isinstance(reader, ask.Writer) and len(answer.citations) == bool(answer.text)


class Words:
  """Writes what it is told, whatever it reads."""

  def __init__(self, text):
    self.text = text

  def __call__(self, model, params, tokenizer, sources, new):
    return [self.text] * len(sources)


@pytest.mark.parametrize(
  ("text", "cited"), [("Red Wine", [0, 2]), ("beer", [0, 1, 2]), ("at", [0, 1, 2]), (" The. ", [])]
)
def test_hits_that_have_the_answer_are_cited(monkeypatch, text, cited):
  monkeypatch.setattr(ask, "write_answers", Words(text))
  texts = ("a\nred\nwine", "water", "of red wine?")
  hits = [Hit(i, Chunk(f"{i}.txt", 3, 100, 200, text), 0.9, 1.0) for i, text in enumerate(texts)]
  model = LoadedModel(Seq2Seq(FusionInDecoder(Config(8, 8))), Bytes(), 8, None, {"model": {}}, 0, {})
  answer = ask.Writer(model, reader())("Which?", hits)
  assert [citation.hit for citation in answer.citations] == cited and (answer.text == text) == bool(cited)
  if cited == [0, 2]:
    assert answer.citations == (ask.Citation(0, 4, 102, 110), ask.Citation(2, 3, 103, 111))
