"""The command line: `lmjax <command>` and `python -m lmjax <command>` are the same."""

import os
import sys

if __name__ == "__main__" and sys.path[:1] == [os.getcwd()] and not sys.flags.safe_path:
  sys.path.append(sys.path.pop(0))  # `python -m` puts it first, and a json.py or a jax.py in it would be imported

import contextlib
import glob
import importlib
import importlib.metadata
import shlex
import traceback
import warnings
from typing import Any

from lmjax.utils import trust
from lmjax.utils.errors import LONGEST, UserError, did_you_mean, one_line, reason
from lmjax.utils.memory import keep_memory

ACCELERATORS = ("/dev/accel*", "/dev/vfio/*", "/dev/nvidia*", "/dev/kfd", "/dev/dxg")  # TPUs, NVIDIA, AMD, WSL

COMMANDS = {
  "train": "train a model, or resume a run",
  "seeds": "train with several seeds: mean and deviation",
  "generate": "continue prompts with a trained model",
  "chat": "talk to a model that was trained on dialogues",
  "evaluate": "evaluate a trained model",
  "embed": "embeddings of tokens, sequences and pairs",
  "fill": "predict masked tokens",
  "index": "an index of documents",
  "ask": "answers from an index of documents, with their sources",
  "predict": "labels of texts, by a model that classifies",
  "teacher": "write what a teacher predicts, for distillation without it",
  "compress": "quantize and prune a trained model",
  "lottery": "find sparse networks that train well from their start",
  "convert": "convert models to and from Hugging Face's format",
  "show": "show the parameters of a saved model",
  "report": "one page about one run or several",
  "configs": "list configs, their variants and keys",
  "runs": "list runs: step, loss, state, size",
  "completion": "complete commands and options in a shell",
  "plan": "memory, hours and cost of a run before its launch",
  "prepare": "tokenize a corpus once; preview batches",
  "tokenizer": "train a tokenizer; encode and decode text",
}
# Commands that run a model again and again. The others give the memory of what they read back to the system.
COMPUTE = {
  "train", "seeds", "lottery", "teacher", "generate", "chat", "evaluate", "embed", "fill", "predict", "index", "ask",
}  # fmt: skip

USAGE = """lmjax <command> [options]      lmjax <command> --help for its options      lmjax --version

{commands}

Options of every command:
  --devices N      simulate N devices on the CPU
  --debug_nans     stop at the operation that produces the first NaN
  --traceback      print the traceback of an error
  --trust          let folders name classes that are not lmjax's own, whose code then runs; see SECURITY.md

JAX_DISABLE_JIT=1 runs operations one by one, for a debugger."""


def main(arguments: list[str] | None = None) -> int:
  """Runs one command and returns its exit code: 2 for a UserError, which is reported in one line."""
  if arguments is None:
    arguments = sys.argv[1:]
    _prepare_process(arguments[:1])
  show = "--traceback" in arguments
  everything = [trust.ALL] if trust.ALL in arguments else []
  try:
    with trust.trusting(*everything):
      code = _run([a for a in arguments if a not in ("--traceback", trust.ALL)])
    sys.stdout.flush()
    return code
  except KeyboardInterrupt:
    _report("interrupted")
    return 130
  except BrokenPipeError:
    _close_stdout()
    return 0
  except (UserError, FloatingPointError, OSError) as error:
    if show:
      with contextlib.suppress(OSError):
        traceback.print_exc()
    message, again = str(error), ""
    if isinstance(error, trust.UntrustedError):
      again = one_line(f": {shlex.join(['lmjax', *arguments, trust.ALL])}", LONGEST)
    if isinstance(error, FloatingPointError):  # of --debug_nans
      message = f"{reason(error)}; --traceback shows where"
    elif isinstance(error, OSError):  # of a file that no other message names, or of standard output on a full disk
      message = f"{error.filename or 'standard output, or a file,'} cannot be used: {reason(error)}"
      _close_stdout()
    _report(f"{one_line(message, LONGEST)}{again}")
    return 2


def _report(line: str) -> None:
  """Prints a line on stderr, which may be a file on a full disk too: then the exit code has to do."""
  with contextlib.suppress(OSError):
    print(f"lmjax: {line}", file=sys.stderr)


def _close_stdout() -> None:
  """Drops what standard output did not take, which Python would try to write again at the end."""
  with contextlib.suppress(OSError, ValueError):
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _prepare_process(command: list[str]) -> None:
  """Configures a process that runs a command only: on Linux without accelerators, JAX uses the CPU.

  With JAX_PLATFORMS=cpu, JAX does not load an installed TPU library, with which its profiler cannot start.
  """
  sys.unraisablehook = _report_unraisable
  sys.stdout.reconfigure(errors="replace")  # for a terminal that is not UTF-8, and for half a surrogate pair
  os.environ.setdefault("PYTHONSAFEPATH", "1")  # processes of workers do not put the current directory first either
  if sys.platform.startswith("linux") and not any(glob.glob(pattern) for pattern in ACCELERATORS):
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
  if os.environ.get("JAX_PLATFORMS") == "cpu" and COMPUTE & {*command}:
    keep_memory()


def _report_unraisable(error: Any) -> None:
  """Prints what has no caller; but when a save fails, Orbax does not wait for its other writes, whose ends say this."""
  if str(error.exc_value) != "Event loop is closed":
    sys.__unraisablehook__(error)


def _run(arguments: list[str]) -> int:
  if not arguments or arguments[0] in ("-h", "--help", "help"):
    print(USAGE.format(commands="\n".join(f"  {name:<11}{summary}" for name, summary in COMMANDS.items())))
    return 0
  if arguments[0] == "--version":
    return _print_version()
  try:
    "".join(arguments).encode()
  except UnicodeEncodeError as error:
    raise UserError(f"the arguments are not UTF-8: {' '.join(arguments)}") from error
  command, *arguments = arguments
  if command not in COMMANDS:
    raise UserError(f"no command {command!r}{did_you_mean(command, COMMANDS)}")
  devices, arguments = _take(arguments, "--devices")
  if devices is not None:
    if not devices.isdigit() or int(devices) < 1:
      raise UserError(f"--devices {devices}: must be an integer of at least 1")
    flag = f"--xla_force_host_platform_device_count={devices}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    os.environ["JAX_PLATFORMS"] = "cpu"
    # Simulated devices share a pool of NPROC threads, and a collective blocks one until its peers arrive: with one
    # thread per core, two devices on two cores deadlocked.
    os.environ.setdefault("NPROC", str(4 * int(devices)))
  if os.getcwd() not in sys.path:  # a config may name a class of the user
    sys.path.append(os.getcwd())
  _prepare_jax("--debug_nans" in arguments)
  module = importlib.import_module(f"lmjax.commands.{command}")
  return module.main([a for a in arguments if a != "--debug_nans"])


def _print_version() -> int:
  versions = []
  for package in ("lmjax", "jax", "flax"):
    try:
      versions.append(f"{package} {importlib.metadata.version(package)}")
    except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
      versions.append(f"{package} (not installed)")
  print(f"{', '.join(versions)}, Python {sys.version.split()[0]}")
  return 0


def _take(arguments: list[str], name: str) -> tuple[str | None, list[str]]:
  """Removes `name VALUE` or `name=VALUE` from the arguments; returns the value and the others."""
  for i, argument in enumerate(arguments):
    if argument == name:
      if i + 1 == len(arguments):
        raise UserError(f"{name} needs a value")
      return arguments[i + 1], arguments[:i] + arguments[i + 2 :]
    if argument.startswith(name + "="):
      return argument[len(name) + 1 :], arguments[:i] + arguments[i + 1 :]
  return None, arguments


def _prepare_jax(debug_nans: bool) -> None:
  """Configures JAX for every command, before a device is used."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  from absl import flags

  flags.FLAGS.mark_as_parsed()  # Grain's worker processes read absl flags
  import jax

  if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    cache = os.path.join(os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "lmjax", "xla")
    jax.config.update("jax_compilation_cache_dir", cache)
  jax.config.update("jax_debug_nans", debug_nans)
  # A full disk, or what one left: the command compiles instead.
  warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")


if __name__ == "__main__":
  sys.exit(main())
