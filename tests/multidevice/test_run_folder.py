"""One run folder and several hosts: they refuse a used one, and leave out a corrupt checkpoint, together."""

import pytest

from lmjax.parallel.run_lock import only_run
from tests.multidevice.test_hosts import finish, start

MORE = ("--config.checkpoint.every=4", "--config.evals.every=0")


@pytest.mark.long
def test_hosts_decide_together(tmp_path):
  run = tmp_path / "run"
  with only_run(run):
    done = finish(start(run, 2, 1, "--config.steps=8", *MORE))
  for code, output in done:
    assert code == 2 and f"{run} is used by another run (process" in output, output
  assert not run.exists()

  done = finish(start(run, 2, 1, "--config.steps=8", *MORE))
  assert [code for code, _ in done] == [0, 0], done
  paths = [path for path in (run / "checkpoints" / "8").rglob("*") if path.is_file() and path.parent.name == "d"]
  path = max(paths, key=lambda path: path.stat().st_size)
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)
  done = finish(start(run, 2, 1, "--config.steps=12", *MORE))
  assert [code for code, _ in done] == [0, 0], done
  assert "8 is corrupt, moved to" in done[0][1] and "resumes from step 4" in done[0][1]
  assert (run / "corrupt" / "8").exists() and (run / "checkpoints" / "12" / "checksums.json").exists()
