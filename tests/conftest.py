"""What tests share: the data folder, a runner for commands, and the markers."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import jax
import pytest

ROOT = pathlib.Path(__file__).parent.parent
DATA = pathlib.Path(os.environ.get("LMJAX_DATA", ROOT.parent / "shared" / "data"))

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(pathlib.Path.home() / ".cache" / "lmjax" / "tests"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


# A fast test over all families takes one of each kind. Of the others, these are long; and these, whose code the first
# share and which parity compares with transformers, are slow.
LONG = {"ELMo", "LSTM", "Llama", "Transformer"}
SLOW = {
  "ALBERT", "BART", "DeBERTa", "ModernBERT", "albert", "bart", "byt5", "camembert", "deberta-v2", "distilbert",
  "electra", "gemma", "gemma2", "gemma3_text", "gpt_neox", "granite", "llava", "marian", "mistral", "mixtral",
  "modernbert", "mt5", "openai-gpt", "opt", "phi", "phi3", "qwen2", "qwen3", "qwen3_moe", "roberta", "xlm-roberta",
}  # fmt: skip


def pytest_configure(config):
  """What tests compile runs for milliseconds and compiles for seconds: LLVM does without its best.

  Slow tests, and those beside torch, of which some have real models, run for longer.
  """
  if not config.getoption("--all") or "not slow and not torch" in config.option.markexpr:
    flags = [os.environ.get("XLA_FLAGS", ""), "--xla_backend_optimization_level=0"]
    # A third less time to compile. Later versions do not have it, and libtpu ends a process that sets it.
    if jax.version.__version_info__ < (0, 11) and not importlib.util.find_spec("libtpu"):
      flags.append("--xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join(flags).strip()


def pytest_addoption(parser):
  parser.addoption("--all", action="store_true", help="run the slow tests too")
  parser.addoption("--fuzz", type=int, metavar="N", help="mutations of each format; default 24, with --all 300")
  parser.addoption("--one-case", action="store_true", help="run one case of each parametrized test")
  parser.addoption("--fail-on-skip", action="store_true", help="count a skipped test as a failure")


def pytest_sessionfinish(session):
  reporter = session.config.pluginmanager.get_plugin("terminalreporter")  # none in a worker of xdist
  if session.config.getoption("--fail-on-skip") and reporter and reporter.stats.get("skipped"):
    session.exitstatus = 1


def pytest_collection_modifyitems(config, items):
  parity = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
  for item in items:
    values = item.callspec.params.values() if hasattr(item, "callspec") else ()
    values = {value for value in values if isinstance(value, str)}
    markers = {marker.name for marker in item.iter_markers()}  # keywords hold names of cases too
    if "torch" not in markers and (rare := "slow" if SLOW & values else "long" if LONG & values else ""):
      item.add_marker(getattr(pytest.mark, rare))
      markers.add(rare)
    if {"slow", "docs", "long"} & markers and not config.getoption("--all"):
      item.add_marker(pytest.mark.skip(reason="takes minutes: runs with --all"))
    if "torch" in markers and not parity:
      item.add_marker(pytest.mark.skip(reason="needs torch and transformers: pip install -e '.[parity]'"))
  if config.getoption("--one-case"):
    first: dict = {}
    for item in sorted(items, key=lambda item: bool(item.get_closest_marker("skip"))):
      first.setdefault(item.nodeid.partition("[")[0], item)
    config.hook.pytest_deselected(items=[item for item in items if item not in first.values()])
    items[:] = first.values()


@pytest.fixture(scope="module", autouse=True)
def forget_compiled():
  """Programs that a file of tests has compiled do not stay in memory."""
  yield
  jax.clear_caches()


@pytest.fixture
def data():
  """The folder of real data; the test is skipped where it is absent."""
  if not DATA.exists():
    pytest.skip(f"real data is not at {DATA}; set LMJAX_DATA to its folder")
  return DATA


@pytest.fixture(scope="session")
def fuzz(pytestconfig) -> int:
  """How many mutations, or generated examples, of each format."""
  number = pytestconfig.getoption("--fuzz")
  return (300 if pytestconfig.getoption("--all") else 24) if number is None else number


@pytest.fixture
def lmjax():
  """Runs `lmjax ...` in a process of its own and returns it, finished."""

  def run(*arguments, check=True, env=None, timeout=300, cwd=ROOT):
    process = subprocess.run(
      [sys.executable, "-W", "error", "-m", "lmjax", *map(str, arguments)],
      cwd=cwd,
      env=os.environ | {"JAX_PLATFORMS": "cpu"} | (env or {}),
      capture_output=True,
      text=True,
      timeout=timeout,
    )
    if check:
      assert process.returncode == 0, process.stderr[-3000:] + process.stdout[-1000:]
    return process

  return run
