"""The page about runs: what it shows, and that it needs nothing but itself."""

import html.parser
import json
import shutil
import subprocess

import pytest

from lmjax.__main__ import main
from lmjax.evals.suites import page

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
SUMMARY = {
  "parameters": 1234567,
  "seconds": 12.5,
  "time": {"data": 1.5, "step": 9.25},
  "energy_kwh": None,
  "devices": "2 x NVIDIA H100 80GB HBM3",
}


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
  lines += [{"step": 10 * i, "samples": [f"<i>text {seed} {i}", "second"]} for i in range(len(losses))]
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
  assert "\n0\n<i>text 0 0\n\nsecond\n<i>text 1 0\n\nsecond\n" in page.content, "samples side by side, escaped"
  assert text.count("samples of step") == 0 and page.content.count("<i>text 0") == 3


def test_what_a_run_cost(tmp_path, capsys):
  """Energy, emissions from it, and devices x hours x price: the listed one, or --price; unknown for a CPU."""
  run = make_run(tmp_path / "one", 0, [1.0])
  rows = lambda: Page((tmp_path / "r.html").read_text()).content  # noqa: E731
  facts = SUMMARY | {"seconds": 1800.0, "energy_kwh": 2.0, "time": {"step": 1000.0, "data": 200.0}}
  (run / "summary.json").write_text(json.dumps(facts))
  assert main(["report", str(run), "--output", str(tmp_path / "r.html")]) == 0
  assert "\ncost, dollars\n11.06\n" in rows() and "11.06, of 2025" in rows()
  assert "\nCO2e, kg\n0.865454\n" in rows() and "\nenergy_kwh\n2\n" in rows() and "other 600 s" in rows()
  assert main(["report", str(run), "--output", str(tmp_path / "r.html"), "--price", "0.5"]) == 0
  assert "\ncost, dollars\n0.5\n" in rows()
  (run / "summary.json").write_text(json.dumps(facts | {"devices": "1 x cpu", "energy_kwh": None}))
  assert main(["report", str(run), "--output", str(tmp_path / "r.html")]) == 0
  assert "not known for this device; set --price" in rows() and "CO2e" not in rows()


ODD = ([], {"time": []}, {"time": {"step": "x"}}, {"seconds": True, "devices": 3}, {"energy_kwh": [1]},
       {"seconds": 1e999, "time": {"a": -1.0}})  # fmt: skip


@pytest.mark.parametrize("file", ["summary.json", "suite/results.json", "config.json"])
@pytest.mark.parametrize("content", [*map(json.dumps, ODD), "{", '{"tasks": []}', '{"tasks": {"a": {"metrics": 1}}}',
                                     '{"tasks": {"a": {"metrics": {"b": {"value": "x"}}}}}', "[" * 9999])  # fmt: skip
def test_what_is_odd_in_a_run_is_shown_or_refused(tmp_path, file, content, capsys):
  run = make_run(tmp_path / "one", 0, [1.0])
  (run / file).write_text(content)
  code = main(["report", str(run), "--output", str(tmp_path / "r.html")])
  error = capsys.readouterr().err
  assert (code, error) == (0, "") or (code == 2 and error.count("\n") == 1 and str(run / file) in error), error


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
def test_a_browser_shows_the_pages_without_an_error_or_a_request(tmp_path):
  """A request would fail without a network, and an error is written to the console: here what was broken on purpose."""
  runs = [make_run(tmp_path / name, seed, [3.0, 2.0]) for seed, name in enumerate(("one", "two"))]
  score = {"value": 0.6, "low": 0.5, "high": 0.9}
  task = {"items": 3, "metrics": {"acc": score}, "by": {"subject=art": score | {"items": 3}}}
  bins = {"exam": [(0.5, 0.4, 2), (0.9, 1.0, 1)]}
  (tmp_path / "suite.html").write_text(page.render("Evaluation", {"tasks": {"exam": task}}, bins))
  assert main(["report", *map(str, runs), "--output", str(tmp_path / "r.html")]) == 0
  text = (tmp_path / "r.html").read_text()
  (tmp_path / "broken.html").write_text(text.replace("<h1>", '<img src="http://localhost:9/x.png"><h1>'))
  messages, drawn = {}, {"r": "<polyline", "suite": "<circle", "broken": "<polyline"}
  for name in drawn:
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
               f"--user-data-dir={tmp_path}/profile", "--enable-logging=stderr", "--dump-dom",
               f"file://{tmp_path}/{name}.html"]  # fmt: skip
    process = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0 and drawn[name] in process.stdout
    messages[name] = [line for line in process.stderr.splitlines() if "CONSOLE" in line]
  assert not messages["r"] and not messages["suite"] and messages["broken"]
