"""Answer a question from an index of documents, with the sources of the answer.

    lmjax ask --index indexes/docs "How is a run resumed?"
    lmjax ask --index indexes/docs "How is a run resumed?" --workdir runs/squad
    lmjax ask --index indexes/docs "How is a run resumed?" --workdir smollm2.gguf

The chunks that the index finds are numbered. Without --workdir, they are printed. A model of configs/squad.py answers
with a span of them; one of configs/fusion_in_decoder.py, or a decoder with a chat template, writes an answer. If no
chunk is similar enough, or the model says so, the answer is "not in these documents".
"""

import json
import textwrap

from lmjax import storage
from lmjax.commands.index import check_libraries
from lmjax.commands.options import new_parser, parse, refuse
from lmjax.inference.ask import NONE, THRESHOLD, Answer, answer, make_reader
from lmjax.inference.retrieval import Hit, Index, open_encoder
from lmjax.parallel.sharding import use_layout
from lmjax.utils.errors import UserError, one_line

LINES = 4  # of a chunk that are printed


def main(arguments: list[str]) -> int:
  """Runs `lmjax ask`."""
  parser = new_parser("ask", __doc__)
  add = parser.add_argument
  add("question", type=str, help="the question")
  add("--index", required=True, help="the folder of the index")
  add("--workdir", help="the reader: a run of configs/squad.py or fusion_in_decoder.py, or a model that chats")
  add("--encoder", help="where the encoder of the index is now; default where it was")
  add("--top", type=int, least=1, most=100, default=5, help="number of chunks")
  add("--threshold", type=float, most=1, default=THRESHOLD, help="similarity of the best chunk, at least; 0: any")
  add("--template", default="", help="of a model that chats: chatml, plain, or a Jinja file; default its own")
  add("--max_new_tokens", type=int, least=1, default=128, help="of an answer that is written")
  add("--json", action="store_true", help="print one JSON object")
  options = parse(parser, arguments)
  refuse(parser, options, {}, {"workdir": "template max_new_tokens"})
  question = options.question.strip()
  if not question:
    raise UserError("ask: the question is empty")
  check_libraries("ask")
  index = Index(options.index)
  settings = index.contents.settings
  encoder = open_encoder(
    options.encoder or settings.encoder, None, settings.pooling, settings.prompt, settings.query_prompt
  )  # fmt: skip
  if encoder.checksum != settings.checksum:
    raise UserError(
      f"ask: {options.encoder or settings.encoder} is not the encoder of {options.index} (checksum "
      f"{encoder.checksum[:12]}, not {settings.checksum[:12]}); give --encoder, or make the index again"
    )
  with use_layout(encoder.loaded.layout):
    (hits,) = index.search([question], encoder.embed_questions([question]), options.top)
  if not options.workdir:
    _print(answer(question, hits, None, options.threshold), hits, options.json)
    return 0
  loaded = storage.open(options.workdir).load()
  with use_layout(loaded.layout):
    reader = make_reader(loaded, options.workdir, options.template, options.max_new_tokens)
    _print(answer(question, hits, reader, options.threshold), hits, options.json)
  return 0


def _print(reply: Answer, hits: list[Hit], as_json: bool) -> None:
  sources = []
  for number, citation in enumerate(reply.citations, 1):
    hit, place = hits[citation.hit], citation._asdict() | {"hit": citation.hit + 1}
    sources.append({"number": number, "file": hit.chunk.file} | place | {"similarity": round(hit.similarity, 4)})
  if as_json:
    print(json.dumps({"answer": reply.text or None, "sources": sources}, ensure_ascii=False))
    return
  if not sources:
    print(NONE)
    return
  if reply.text:
    print(f"{reply.text} [{', '.join(str(source['hit']) for source in sources)}]\n")
  for source in sources:
    place = f"{source['file']}:{source['line']}"
    at = f"characters {source['start']:,} to {source['end']:,}, similarity {source['similarity']:.2f}"
    print(f"[{source['hit']}] {one_line(place)} ({at})")
    text = one_line(hits[source["hit"] - 1].chunk.text.replace("\n", " "), 2000)
    print("\n".join(textwrap.wrap(text, 100, max_lines=LINES, initial_indent="    ", subsequent_indent="    ")))
