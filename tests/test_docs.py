"""Every training command in README, configs and launch scripts names a config and variants that load."""

import re

import pytest

from lmjax import config
from tests.conftest import ROOT

FILES = [ROOT / "README.md", *sorted((ROOT / "configs").glob("*.py")), *sorted((ROOT / "launch").glob("*.sh"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_commands_load(path):
  text = path.read_text().replace("\\\n", " ")
  commands = re.findall(r"lmjax train --config (\S+)([^\n#]*)", text)
  assert commands or path.suffix == ".sh" or "README" in path.name
  for reference, rest in commands:
    if "..." in reference:
      continue
    overrides = dict(re.findall(r"--config\.([\w.]+)=(\S+)", rest))
    assert config.load(reference.replace("'", ""), overrides)["steps"] > 0
