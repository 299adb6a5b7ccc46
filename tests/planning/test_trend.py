"""The growth of models: presets have the size of the published models that they stand for; 6ND; a figure is drawn."""

import datetime
import json

import pytest

from lmjax.__main__ import main
from lmjax.planning import trend


def test_presets_have_the_published_sizes(monkeypatch):
  """Of decoders, whose counting takes least; the other presets are counted in tests/models."""
  for model in trend.MODELS:
    if model.preset and model.kind == "decoder" and "llama" not in model.preset:
      ours = trend.count_preset(model.kind, model.preset)
      assert ours == pytest.approx(model.parameters, rel=0.05), model


def test_every_row_has_a_source_and_its_compute():
  names = [model.name for model in trend.MODELS]
  assert len(set(names)) == len(names)
  for model in trend.MODELS:
    datetime.date.fromisoformat(model.date)
    assert model.kind in trend.KINDS and model.sources and model.parameters > 0
    assert (model.flops is None) == (model.tokens is None)
    assert model.active is None or model.kind == "mixture of experts"
  by_name = {model.name: model for model in trend.MODELS}
  assert by_name["GPT-3"].flops == 6 * 175e9 * 300e9 and by_name["GLaM"].flops == 6 * 96.6e9 * 600e9
  assert round(by_name["Llama 2 70B"].mwh) == 688 and by_name["BLOOM"].mwh is None


def test_the_command_draws_and_prints(monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(trend, "count_preset", lambda kind, preset: 10**9)
  assert main(["plan", "--trend", "--json", "--output", str(tmp_path / "trend.png")]) == 0
  rows = json.loads(capsys.readouterr().out)
  assert [row["date"] for row in rows] == sorted(row["date"] for row in rows) and len(rows) == len(trend.MODELS)
  assert (tmp_path / "trend.png").read_bytes().startswith(b"\x89PNG")
  assert main(["plan", "--trend"]) == 0 and "GPT-3" in capsys.readouterr().out
  assert main(["plan", "--output", str(tmp_path / "x.png")]) == 2
  assert "no effect without --trend" in capsys.readouterr().err
