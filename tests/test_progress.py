"""Progress outside a terminal: lines with the time left, and none where work is short."""

import time

from etils import epath

from lmjax import screen
from lmjax.inference import progress
from lmjax.inference.progress import ProgressBar, tracked


def test_long_work_prints_lines_with_the_time_left_and_short_work_none(monkeypatch, capsys):
  clock = [0.0]
  monkeypatch.setattr(time, "monotonic", lambda: clock[0])
  with ProgressBar("piqa", 1_100, 100, "items") as bar:
    for _ in range(4):
      clock[0] += 25
      bar.advance(100)
  lines = capsys.readouterr().err.splitlines()
  # The first after FIRST seconds, further ones EVERY seconds apart; 100 items took 25 s, and those before no time.
  assert lines == ["piqa: 200 of 1,100 items, 0:03:45 left", "piqa: 500 of 1,100 items, 0:02:30 left"]
  assert list(tracked("ab", "short", 2)) == ["a", "b"]
  assert not any(capsys.readouterr())


def test_a_terminal_has_a_bar_and_other_hosts_have_nothing(monkeypatch, capsys):
  monkeypatch.setenv("FORCE_COLOR", "1")
  with ProgressBar("prepare", 10, unit="documents") as bar:
    bar.update(4, note="2.5 MB/s")
  assert "4/10 documents" in (error := capsys.readouterr().err) and "2.5 MB/s" in error
  monkeypatch.setattr(progress.jax, "process_index", lambda: 1)
  with ProgressBar("prepare", 10) as bar:
    bar.update(4)
  assert not any(capsys.readouterr())


def test_scores_are_printed_with_their_limits_and_baselines_once(capsys, tmp_path):
  shown = screen.Screen(epath.Path(tmp_path))
  scores = {"dev_f1": 0.5, "dev_f1_low": 0.4, "dev_f1_high": 0.61, "dev_majority_f1": 0.3, "validation_loss": 2.0}
  for step in (1, 2):
    shown.evaluated(step, scores | {"validation_baseline_bits": 1.5}, [])
  assert capsys.readouterr().out.splitlines() == [
    "baselines: dev majority f1 0.3000, bits 1.5000",
    "step 1  dev:  f1 0.5000 (0.4000 to 0.6100)",
    "step 1  validation:  loss 2.0000",
    "step 2  dev:  f1 0.5000 (0.4000 to 0.6100)",
    "step 2  validation:  loss 2.0000",
  ]
