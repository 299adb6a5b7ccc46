"""Finds the paragraphs of XQuAD's questions among paragraphs of books and web pages: BM25, vectors, and both.

    python benchmarks/retrieval.py --data ../shared/data --encoder MINILM --workdir retrieval
    python benchmarks/retrieval.py ... --articles 80%:      (the questions of the last fifth of the articles)
    python benchmarks/retrieval.py ... --reader runs/squad  (answers, too)

Prints recall at 1, 5 and 20, the mean reciprocal rank with its 95 % bootstrap interval, and how often a threshold of
the similarity, chosen on the questions at even places, tells questions at odd places whose paragraph is there from the
same questions without it.
"""

import argparse
import gzip
import json
import pathlib

import numpy as np

from lmjax import storage
from lmjax.data.sources.squad import Squad
from lmjax.data.sources.text import gutenberg_body
from lmjax.evals.bootstrap import limits
from lmjax.evals.squad_scores import compare
from lmjax.inference.ask import THRESHOLD, answer, make_reader
from lmjax.inference.chunks import PARAGRAPHS
from lmjax.inference.indexing import Builder
from lmjax.inference.retrieval import DEPTH, Index, Settings, fuse, open_encoder
from lmjax.parallel.sharding import use_layout

LENGTHS = 400, 1500  # characters of a distractor


def distractors(data: pathlib.Path, count: int) -> list[str]:
  """Returns paragraphs, at most a third of them from web pages and the rest from books, drawn with a fixed seed."""
  files = sorted(data.glob("lm_gutenberg_books/*.gz"))
  books = [gutenberg_body(gzip.decompress(path.read_bytes())).decode() for path in files]
  web = (data / "lm_web_samples" / "c4_demo.jsonl").read_text().splitlines()
  pages = [json.loads(line)["text"].replace("\n", "\n\n") for line in web if line.strip()]
  pages.append((data / "lm_web_samples" / "wiki_demo.txt").read_text().replace("\n", "\n\n"))
  rng, drawn = np.random.default_rng(0), []
  for texts, number in ((pages, count // 3), (books, count)):
    own = [p.strip() for text in texts for p in PARAGRAPHS.split(text)]
    own = sorted({p for p in own if LENGTHS[0] <= len(p) <= LENGTHS[1]})
    drawn += [own[i] for i in rng.permutation(len(own))[: min(number, count - len(drawn))]]
  return drawn


def ranks(lists: list[list[str]], true: list[str]) -> np.ndarray:
  """Returns the rank from 1 of each question's file among the files of its hits; infinity where it is missing."""
  unique = [list(dict.fromkeys(own)) for own in lists]
  return np.array([own.index(file) + 1 if file in own else np.inf for own, file in zip(unique, true, strict=True)])


def row(name: str, places: np.ndarray) -> str:
  """Returns a row of the table."""
  values = 1 / places
  interval = limits("mrr", values, np.mean, 1000)
  recall = " | ".join(f"{np.mean(places <= k):.3f}" for k in (1, 5, 20))
  return f"| {name} | {recall} | {values.mean():.3f} ({interval['mrr_low']:.3f} to {interval['mrr_high']:.3f}) |"


def refusals(present: np.ndarray, absent: np.ndarray) -> str:
  """Returns what the threshold that is best on even places does on odd ones, and what the default one does."""
  options = np.unique(np.concatenate([present, absent]))
  best = max(options, key=lambda t: np.mean(present[::2] >= t) + np.mean(absent[::2] < t))
  lines = []
  for name, t in (("best", best), ("default", THRESHOLD)):
    answered, refused = np.mean(present[1::2] >= t), np.mean(absent[1::2] < t)
    lines.append(f"{name} threshold {t:.3f}: {answered:.3f} answered with the paragraph, {refused:.3f} refused without")
  return "\n".join(lines)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--data", type=pathlib.Path, required=True)
  parser.add_argument("--encoder", required=True)
  parser.add_argument("--workdir", type=pathlib.Path, required=True, help="where documents and indexes are written")
  parser.add_argument("--distractors", type=int, default=3000)
  parser.add_argument("--articles", default="", help="of the questions, as 80%%:")
  parser.add_argument("--reader", help="a model that extracts answers")
  parser.add_argument("--tokens", type=int, default=254)
  options = parser.parse_args()
  source = str(options.data / "qa_xquad" / "xquad.en.articles-1-24.json")
  questions = list(Squad(source, options.articles))
  documents = options.workdir / "documents"
  documents.mkdir(parents=True, exist_ok=True)
  names = {}
  for i, context in enumerate(dict.fromkeys(q.context for q in Squad(source))):
    names[context] = str(documents / f"xquad-{i:04d}.txt")
    pathlib.Path(names[context]).write_text(context)
  for i, text in enumerate(distractors(options.data, options.distractors)):
    (documents / f"other-{i:04d}.txt").write_text(text)

  encoder = open_encoder(options.encoder)
  folder = options.workdir / f"index-{encoder.checksum[:12]}"
  with use_layout(encoder.loaded.layout):
    settings = Settings(options.encoder, encoder.checksum, options.tokens)
    *_, made = Builder(folder, settings, encoder).run([str(documents)])
    vectors = encoder.embed_questions([q.question for q in questions])
  print(f"{made.files:,} files, {made.chunks:,} chunks, {made.embedded:,} embedded now, {len(questions)} questions")
  index, true = Index(folder), [names[q.context] for q in questions]
  near, same = index.by_vector(vectors), index.by_words([q.question for q in questions])
  files = lambda hits: [index.chunk(r).file for r, _ in hits]  # noqa: E731
  print("| | recall at 1 | at 5 | at 20 | MRR |\n|---|---|---|---|---|")
  both = [fuse([[r for r, _ in a], [r for r, _ in b]])[:DEPTH] for a, b in zip(near, same, strict=True)]
  for name, hits in (("BM25", same), ("vectors", near), ("both", both)):
    print(row(name, ranks([files(own) for own in hits], true)))
  absent = [next(s for r, s in own if index.chunk(r).file != file) for own, file in zip(near, true, strict=True)]
  print(refusals(np.array([own[0][1] for own in near]), np.array(absent)))
  if options.reader:
    read(options.reader, questions, list(index.search([q.question for q in questions], vectors, 5)), true)


def read(path: str, questions, found, true: list[str]) -> None:
  """Prints exact match and F1 of a reader's answers, and how many cite a document that has the answer."""
  loaded = storage.open(path).load()
  with use_layout(loaded.layout):
    reader = make_reader(loaded, path)
    answers = [answer(q.question, hits, reader, 0.0) for q, hits in zip(questions, found, strict=True)]
  scores = np.array([compare(a.text, [t for t, _ in q.answers]) for a, q in zip(answers, questions, strict=True)])
  cited = [[citation.hit for citation in a.citations] for a in answers]
  right = [any(hits[i].chunk.file == f for i in own) for own, hits, f in zip(cited, found, true, strict=True)]
  exact, f1 = scores.mean(axis=0)
  print(f"answers: exact {exact:.3f}, F1 {f1:.3f}, of which {np.mean(right):.3f} cite the paragraph")


if __name__ == "__main__":
  main()
