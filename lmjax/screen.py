"""What a run prints, on the first host: a progress bar in a terminal, plain lines elsewhere, what is surprising."""

import shlex
import time
from collections.abc import Mapping
from typing import Any

from etils import epath
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from lmjax.data.documents import Documents
from lmjax.data.lengths import length_of
from lmjax.data.pipeline import Reader
from lmjax.data.sources.base import BadRecord, Source, read_document
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.evals.samples import generates
from lmjax.experiment import Experiment
from lmjax.logs import console
from lmjax.models.active import active_parameters
from lmjax.utils.errors import one_line
from lmjax.utils.files import read_json

SAMPLED, SECONDS = 200, 0.5  # documents that are tokenized to estimate their number of tokens, and the time for it
BITS = "bits_per_byte"
NEXT = {  # what to try with a trained model, by the name of its class or of its task
  "FusionInDecoder": "lmjax ask --index INDEX 'a question' --workdir {run}",
  "MaskedLM": "lmjax fill --workdir {run} 'a sentence with [MASK] in it'",
  "Downstream": "lmjax predict --workdir {run} --input FILE",
  "Encode": "lmjax embed --workdir {run} --input FILE --output vectors.npz",
}
GENERATE = "lmjax generate --workdir {run} --prompt 'a beginning'"
SUFFIX = " (SIGTERM or Ctrl-C saves the run; the same command resumes it)"


class Screen:
  """What a run prints."""

  def __init__(self, workdir: epath.Path):
    self.workdir, self.run = workdir, shlex.quote(str(workdir))
    self._progress: Progress | None = None
    self._known: dict[str, float] = {}  # the scores of the evaluation before
    self._every = self._steps = 1
    self._before: Mapping[str, Any] = {}  # the config of the run that is resumed
    self._worse: set[str] = set()  # the baselines that were better than the model

  def say(self, text: str) -> None:
    """Prints a line, above the progress bar."""
    console.print(text)

  def begin(self, settings: dict[str, Any]) -> None:
    """Says what takes time before the first step; a new run trains its tokenizer."""
    file, tokenizer = self.workdir / "config.json", settings["data"].get("tokenizer", {})
    algorithm = tokenizer.get("algorithm", "bpe")
    if file.exists():
      self._before = _read(file)
    if not (self.workdir / "tokenizer").exists() and not tokenizer.get("path") and algorithm not in ("bytes", "words"):
      self.say(f"reading the text and training a tokenizer ({algorithm}, {tokenizer.get('size', 4096):,} ids) ...")
    else:
      self.say("reading the data ...")

  def built(self, run: Experiment, first: int) -> None:
    """Prints the size of the data and of the model, and says that the step is compiled, which may take minutes."""
    tokens, devices = run.rows * run.data.length, run.layout.mesh.size
    self._every, self._steps = run.log.every, run.steps
    self.say(f"data: {_data(run.data, run.tokenizer, run.rows, run.steps)}")
    trained = f", {run.trained:,} of them trained" * (run.trained != run.parameters)
    on_each = f", {tokens // devices:,} on each of {devices} devices" * (devices > 1)
    used = active_parameters(run.named, run.task.model.config)
    active = f", {used:,} of them used by a token" * (used != run.parameters)
    self.say(f"model: {run.parameters:,} parameters{active}{trained}; {tokens:,} tokens a step{on_each}")
    for line in (*run.layout.replicated(run.named), *_surprises(run, first, self._before.get("steps"))):
      self.say(line)
    if any(_has_licence(source) for source in (run.data.source, run.data.validation)):
      self.say(
        'note: the text has "*** END OF", the licence of Project Gutenberg follows: clean=gutenberg leaves it out'
      )
    self.say("compiling the training step ...")

  def started(self, run: Experiment, first: int, memory: Any) -> None:
    """Prints the memory of a step and where the run starts, and starts the progress bar."""
    if memory is not None:
      # Donated arguments become outputs in place, so outputs that alias are not counted twice.
      kept, passing = memory.argument_size_in_bytes / 1e6, memory.temp_size_in_bytes / 1e6
      total = kept + passing + (memory.output_size_in_bytes - memory.alias_size_in_bytes) / 1e6
      self.say(f"memory a device: {total:,.0f} MB, {kept:,.0f} of it state and batch, {passing:,.0f} temporaries")
    self.say(f"{f'resumes from step {first}' if first else 'starts'} in {self.workdir}{SUFFIX}")
    if console.is_terminal and not console.is_jupyter:  # in a notebook, the bar would need widgets
      columns = (TextColumn("step {task.completed}/{task.total}"), BarColumn())
      text = TextColumn("loss {task.fields[loss]}  {task.fields[speed]} tokens/s")
      self._progress = Progress(*columns, text, TimeRemainingColumn(), console=console, refresh_per_second=4)
      self._bar = self._progress.add_task("train", total=run.steps, completed=first, loss="-", speed="-")
      self._progress.start()

  def step(self, step: int, loss: float, tokens_per_second: float) -> None:
    """Updates the progress bar; without one, prints a plain line every `log.every` steps."""
    if self._progress:
      self._progress.update(self._bar, completed=step, loss=f"{loss:.4f}", speed=f"{tokens_per_second:,.0f}")
    elif step % self._every == 0 or step == self._steps:
      print(f"{self._at(step)}/{self._steps}  loss {loss:.4f}  {tokens_per_second:,.0f} tokens/s", flush=True)

  def evaluated(self, step: int, scores: Mapping[str, float], samples: list[str]) -> None:
    """Prints the scores of an evaluation in a line; those that stay as they are, of baselines, once."""
    constant = [key for key in scores if "baseline" in key or "_majority" in key]
    new = {key: scores[key] for key in constant if self._known.get(key) != scores[key]}
    if new:
      self.say("baselines: " + ", ".join(f"{_name(key)} {value:.4f}" for key, value in new.items()))
    self._known.update(scores)
    groups: dict[str, str] = {}
    for key in scores:
      if key not in constant and not key.endswith(("_low", "_high")):
        group, _, name = key.partition("_")
        limits = f" ({scores[f'{key}_low']:.4f} to {scores[f'{key}_high']:.4f})" if f"{key}_low" in scores else "   "
        groups[group] = groups.get(group, f"{group}:") + f"  {name.replace('_', ' ')} {scores[key]:.4f}{limits}"
    for line in groups.values():
      self.say(f"{self._at(step)}  {line.rstrip()}")
    own = scores.get(f"validation_{BITS}")
    better = {key for key in constant if key.endswith(BITS) and own is not None and scores[key] < own}
    if better:
      models = " and ".join(f"a {_name(key).removesuffix(' bits per byte')} model" for key in sorted(better))
      self.say(f"{' ' * len(self._at(step))}  still worse than {models}")
    elif self._worse:
      self.say(f"{' ' * len(self._at(step))}  now better than all baselines")
    self._worse = better
    for text in samples:
      self.say(f"{' ' * len(self._at(step))}  sample: {one_line(text.strip(), 300)}")

  def ended(self, run: Experiment, step: int, interrupted: str = "") -> None:
    """Prints where everything is, and what to try next."""
    if interrupted:
      self.say(f"{interrupted}: saved step {step} in {self.workdir}; rerun the same command to resume")
      return
    model, task = (
      [NEXT[c.__name__] for c in type(x).__mro__ if c.__name__ in NEXT] for x in (run.task.model, run.task)
    )
    command = (*model, *[GENERATE] * generates(run.task), *task, "lmjax show {run}")[0]
    self.say(f"{self.workdir} has the checkpoints, metrics.jsonl, loss.png, summary.json and files for TensorBoard")
    self.say(f"next: {command.format(run=self.run)}")

  def close(self) -> None:
    """Stops the progress bar."""
    if self._progress:
      self._progress.stop()

  def _at(self, step: int) -> str:
    return f"step {step:>{len(str(self._steps))}}"


def _read(file: epath.Path) -> dict[str, Any]:
  """Returns the object in a file; empty where it is corrupt, which is reported elsewhere."""
  try:
    return read_json(file)
  except Exception:
    return {}


def _name(key: str) -> str:
  return key.removeprefix("validation_").removeprefix("baseline_").replace("_", " ")


def _data(data: Reader, tokenizer: Tokenizer, rows_per_step: int, steps: int) -> str:
  """Returns the size of the data in words; the number of tokens is estimated from a sample of the documents."""
  documents, count = data.documents(data.source, tokenizer, None, 1), len(data.source)
  total, rows, end = _tokens(documents, count, time.perf_counter() + SECONDS)
  words = f"{count:,} documents, vocabulary of {tokenizer.size:,}"
  if not total:
    return words
  about = "" if end >= count else "about "
  if getattr(data, "packing", "") == "buckets" or not getattr(data, "packed", True):  # a document in each row
    rows = count
  epochs = steps * rows_per_step / rows if rows else steps * rows_per_step * data.length / total
  return (
    f"{count:,} documents, {about}{total:,} tokens, vocabulary of {tokenizer.size:,}; "
    f"{epochs:,.3g} epochs in {steps:,} steps"
  )


def _has_licence(source: Source) -> bool:
  """Returns whether a document ends a book of Gutenberg, of those that can be read in SECONDS."""
  until = time.perf_counter() + SECONDS
  documents = (read_document(source, i) for i in range(len(source)) if time.perf_counter() < until)
  return any(isinstance(text, str) and "*** END OF" in text for text in documents)


def _tokens(documents: Documents, count: int, until: float) -> tuple[int, int, int]:
  """Returns the number of tokens and of finished rows of some documents, estimated, and how many of them were read."""
  total = rows = read = 0
  for i in range(0, count, max(count // SAMPLED, 1)):
    document = read_document(documents.source, i, documents.encode)
    if not isinstance(document, BadRecord):
      total += length_of(document[0])
      rows += sum(isinstance(row, dict) for row in document[0]) if isinstance(document[0], list) else 0
    read += 1
    if time.perf_counter() > until:
      break
  return int(total * count / max(read, 1)), round(rows * count / max(read, 1)), read


def _surprises(run: Experiment, first: int, steps: int | None) -> list[str]:
  """Returns a line for each thing about the learning rate that is hardly ever meant."""
  optimizer, lines = run.optimizer, []
  if optimizer.warmup >= run.steps:
    lines.append(f"the warm-up of {optimizer.warmup:,} steps does not end in the {run.steps:,} steps of the run")
  if optimizer.schedule == "warmup_stable_decay":
    left = run.steps - optimizer.warmup
    if optimizer.decay > left:
      lines.append(f"the decay of {optimizer.decay:,} steps is longer than the {left:,} steps after the warm-up")
    elif not optimizer.decay:
      lines.append("optim.decay is 0: the learning rate stays at its peak until the end")
  elif optimizer.decay:
    lines.append(f"optim.decay has no effect with the schedule {optimizer.schedule}")
  if first and isinstance(steps, int) and steps != run.steps:
    was, now = (float(optimizer.learning_rate(n)(first)) for n in (steps, run.steps))
    changes = f", and the learning rate of step {first:,} from {was:.3g} to {now:.3g}" if was != now else ""
    lines.append(f"the number of steps changes from {steps:,} to {run.steps:,}{changes}")
  return [f"note: {line}" for line in lines]
