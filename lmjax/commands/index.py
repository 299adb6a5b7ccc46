"""Make an index of documents, in which lmjax ask finds answers.

    lmjax index --files 'docs/**' --workdir ENCODER --output indexes/docs
    lmjax ask --index indexes/docs "How is a run resumed?"

Text files, plain or gzipped, are cut into chunks of whole paragraphs; the encoder gives a vector for each chunk. The
same command again embeds only files that have changed and removes those that are gone; after an interruption it
resumes. Needs pip install 'lmjax[retrieval]'.
"""

import importlib.util
import itertools
import re

from etils import epath

from lmjax.commands.options import new_parser, parse
from lmjax.inference.indexing import Builder
from lmjax.inference.progress import ProgressBar
from lmjax.inference.retrieval import NAME, Settings, open_encoder
from lmjax.logs import console
from lmjax.parallel.run_lock import only_run
from lmjax.parallel.sharding import use_layout
from lmjax.utils.errors import UserError
from lmjax.utils.files import absolute, expand


def main(arguments: list[str]) -> int:
  """Runs `lmjax index`."""
  parser = new_parser("index", __doc__)
  add = parser.add_argument
  add("--files", action="append", required=True, help="text files, by path, glob or folder; may be given several times")
  add("--workdir", required=True, help="the encoder: a run folder, a Hugging Face folder, or hf:owner/name")
  add("--step", type=int, help="the step of the checkpoint; default the latest")
  add("--output", required=True, help="the folder of the index")
  add("--tokens", type=int, least=1, default=128, help="of a chunk at most")
  add("--prompt", help="text that precedes every chunk; default the folder's own")
  add("--query_prompt", help="text that precedes every question; default that of chunks")
  add("--batch", type=int, least=1, default=32, help="chunks computed together")
  options = parse(parser, arguments)
  check_libraries("index")
  output = expand(options.output)
  if output.exists() and (not output.is_dir() or any(_others(output))):
    raise UserError(f"index: {output} is in the way: it is not an index")
  encoder = open_encoder(
    options.workdir, options.step, None, options.prompt, options.query_prompt, options.batch
  )  # fmt: skip
  longest = encoder.chunks.length - len(encoder.chunks.encode_text("x").tokens) + 1
  if options.tokens > longest:
    raise UserError(f"index: --tokens {options.tokens} is more than the encoder reads, {longest}")
  settings = Settings(
    absolute(options.workdir), encoder.checksum, options.tokens, None, options.prompt, options.query_prompt
  )  # fmt: skip
  with only_run(output), use_layout(encoder.loaded.layout):
    builder = Builder(epath.Path(output), settings, encoder)
    with ProgressBar("index", 1, unit="files") as progress:
      for summary in builder.run(options.files):
        progress.update(summary.files, builder.total, f"{summary.chunks:,} chunks")
  for record in itertools.islice(summary.skipped, 5):
    console.print(f"skipped: {record.where} {record.why}")
  more = f", {len(summary.skipped):,} skipped" if summary.skipped else ""
  console.print(
    f"{options.output}: {summary.files:,} files, {summary.chunks:,} chunks, {summary.embedded:,} of them new{more}"
  )
  return 0


def check_libraries(command: str) -> None:
  """Raises UserError where a library of search is missing."""
  for name, package in (("faiss", "faiss-cpu"), ("bm25s", "bm25s")):
    if importlib.util.find_spec(name) is None:
      raise UserError(f"{command}: needs {package}; pip install 'lmjax[retrieval]'")


def _others(folder: epath.Path) -> list[str]:
  """Returns the files of a folder that is not an index; one that was interrupted early has a lock and a shard alone."""
  names = [path.name for path in folder.iterdir()]
  own = re.compile(r"run\.lock|\d{6}\.(npy|jsonl)|\..*\.part")
  return [] if NAME in names else [name for name in names if not own.fullmatch(name)]
