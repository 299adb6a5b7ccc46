"""One run folder and several hosts: they refuse a used one, and leave out a corrupt checkpoint, together."""

import json

import pytest
from etils import epath

from lmjax import checkpoint
from lmjax.parallel.run_lock import only_run
from lmjax.utils.errors import UserError
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
  step, sums = run / "checkpoints" / "8", json.loads((run / "checkpoints" / "8" / "checksums.json").read_text())
  written = [path for path in step.rglob("*") if path.is_file() and path.name != "checksums.json"]
  assert {path.name for path in (step / "state").iterdir()} >= {"ocdbt.process_0", "ocdbt.process_1"}
  assert {str(path.relative_to(step)) for path in written} == {key.rpartition(":")[0] for key in sums}
  for path in written:  # of either host
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if content else b"0")
    with pytest.raises(UserError, match=str(path.relative_to(step))):
      checkpoint.check(epath.Path(step))
    path.write_bytes(content)
  assert checkpoint.check(epath.Path(step)) == len(sums)
  paths = [path for path in written if path.parent.name == "d"]
  path = max(paths, key=lambda path: path.stat().st_size)
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)
  done = finish(start(run, 2, 1, "--config.steps=12", *MORE))
  assert [code for code, _ in done] == [0, 0], done
  assert "8 is corrupt, moved to" in done[0][1] and "resumes from step 4" in done[0][1]
  assert (run / "corrupt" / "8").exists() and (run / "checkpoints" / "12" / "checksums.json").exists()
