"""The page about runs: what it shows, and that it needs nothing but itself."""

import html.parser
import json
import shutil
import subprocess

import pytest

from lmjax.__main__ import main

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
SUMMARY = {"parameters": 1234567, "seconds": 12.5, "time": {"data": 1.5, "step": 9.25}, "energy_kwh": None}


class Page(html.parser.HTMLParser):
  """Collects tags, attributes that name other files, and the text."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.links, self.content = [], [], ""
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    self.tags.append(tag)
    self.links += [value for key, value in attributes if key in ("src", "href", "srcset", "action", "data")]

  def handle_data(self, data):
    self.content += data + "\n"


def make_run(folder, seed, losses, evaluated=True):
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps({"format": 3, "seed": seed, "model": {"width": 64, "name": "<b>&"}}))
  lines = [{"step": 10 * i, "train_loss": loss} for i, loss in enumerate(losses)]
  (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  (folder / "summary.json").write_text(json.dumps(SUMMARY | {"seconds": 12.5 + seed}))
  if evaluated:
    (folder / "suite").mkdir()
    score = {"value": 0.6 + seed / 10, "low": 0.5, "high": 0.9}
    (folder / "suite" / "results.json").write_text(json.dumps({"tasks": {"piqa": {"metrics": {"acc": score}}}}))
  return folder


def test_one_page_shows_runs_side_by_side(tmp_path):
  """Differences, not what is equal; a curve for each run; scores with intervals; the time; nothing to fetch."""
  runs = [make_run(tmp_path / "one", 0, [3.0, 2.0, 1.5]), make_run(tmp_path / "two", 1, [3.0], evaluated=False)]
  assert main(["report", *map(str, runs), "--output", str(tmp_path / "r.html")]) == 0
  text = (tmp_path / "r.html").read_text()
  page = Page(text)
  assert "script" not in page.tags and set(page.links) == {"data:,"} and "http" not in text.replace("http-equiv", "")
  assert "default-src 'none'" in text and text.count("<polyline") == 2 and "train_loss" in page.content
  assert "\nseed\n0\n1\n" in page.content and "model.width" not in page.content
  assert "\nparameters\n1234567\n1234567\n" in page.content and "\ntime: step\n9.25\n9.25\n" in page.content
  assert "0.6000 (0.5000 to 0.9000)" in page.content and str(runs[1]) in page.content


def test_one_run_shows_its_config(tmp_path):
  run = make_run(tmp_path / "one", 0, [1.0])
  assert main(["report", str(run), "--output", str(tmp_path / "r.html")]) == 0
  page = Page((tmp_path / "r.html").read_text())
  assert '"<b>&"' in page.content and "b" not in page.tags and "model.width" in page.content


@pytest.mark.parametrize("missing", ["config.json", "metrics.jsonl"])
def test_what_is_not_a_run_is_refused(tmp_path, missing, capsys):
  run = make_run(tmp_path / "one", 0, [1.0])
  (run / missing).unlink()
  assert main(["report", str(run), "--output", str(tmp_path / "r.html")]) == 2
  assert "is not a run folder" in capsys.readouterr().err and not (tmp_path / "r.html").exists()


@pytest.mark.skipif(not BROWSER, reason="needs Chromium")
def test_a_browser_shows_the_page_without_an_error_or_a_request(tmp_path):
  """A request would fail without a network, and an error is written to the console: here what was broken on purpose."""
  run = make_run(tmp_path / "one", 0, [3.0, 2.0])
  assert main(["report", str(run), "--output", str(tmp_path / "r.html")]) == 0
  text = (tmp_path / "r.html").read_text()
  (tmp_path / "broken.html").write_text(text.replace("<h1>", '<img src="http://localhost:9/x.png"><h1>'))
  messages = {}
  for name in ("r", "broken"):
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
               f"--user-data-dir={tmp_path}/profile", "--enable-logging=stderr", "--dump-dom",
               f"file://{tmp_path}/{name}.html"]  # fmt: skip
    process = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0 and "<polyline" in process.stdout
    messages[name] = [line for line in process.stderr.splitlines() if "CONSOLE" in line]
  assert not messages["r"] and messages["broken"]
