"""The notebooks run from top to bottom, and are committed without outputs."""

import json
import os
import re
import shutil
import subprocess
import sys

import jax
import pytest

from tests.conftest import ROOT

CACHE = {"JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir)}
KINDS = ("markdown", "code")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.docs
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path):
  shutil.copy(path, tmp_path / "it.ipynb")
  done = subprocess.run(
    [sys.executable, "-c", "from nbclient.cli import main; main()", "--output", "done", "it.ipynb"],
    cwd=tmp_path, env=os.environ | {"JAX_PLATFORMS": "cpu"} | CACHE,
    capture_output=True, text=True, timeout=300,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-3000:]
  cells = json.loads((tmp_path / "done.ipynb").read_text())["cells"]
  shown = [data for cell in cells for output in cell.get("outputs", ()) for data in output.get("data", ())]
  assert "text/html" in shown and "image/png" in shown, shown


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_nothing_printed_is_committed(path):
  for cell in json.loads(path.read_text())["cells"]:
    assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_opens_in_colab(path):
  """By its badge; the first cell installs there, and no cell needs files beside the notebook."""
  cells = json.loads(path.read_text())["cells"]
  first, code = ("".join(next(cell for cell in cells if cell["cell_type"] == kind)["source"]) for kind in KINDS)
  account = re.search(r"git\+https://github.com/(\w+/\w+)", code)[1]
  assert f"https://colab.research.google.com/github/{account}/blob/main/notebooks/{path.name}" in first
  assert code.index('if "google.colab" in sys.modules:') < code.index("%pip")
  text = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
  assert "../" not in text and "configs/" not in text
  for package in re.findall(r"find_spec\(\"(\w+)\"\)", text):
    assert f"--no-deps {package.replace('_', '-')}" in code


def test_there_are_five():
  assert [path.stem for path in NOTEBOOKS] == [
    "fine_tune",
    "from_huggingface",
    "inspect_checkpoint",
    "tour",
    "train_and_look",
  ]
