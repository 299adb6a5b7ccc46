"""The energy of a run, with each of the counters and without any."""

import functools
import sys
import types

import pytest

from lmjax.planning import hardware
from lmjax.planning.hardware import EnergyMeter

PROCESSOR = types.SimpleNamespace(platform="cpu", device_kind="cpu")
GPU = types.SimpleNamespace(platform="gpu", device_kind="NVIDIA H100 80GB HBM3")


@pytest.fixture(autouse=True)
def no_counter(monkeypatch, tmp_path):
  """Hides the counters of this machine and CodeCarbon."""
  monkeypatch.setattr(hardware, "_codecarbon", lambda: None)
  monkeypatch.setattr(EnergyMeter, "_rapl", functools.partialmethod(EnergyMeter._rapl, root=str(tmp_path)))
  monkeypatch.setitem(sys.modules, "pynvml", None)


def test_processors_are_measured_by_rapl(tmp_path):
  counters = [tmp_path / f"intel-rapl:{i}" / "energy_uj" for i in range(2)]
  for counter in counters:
    counter.parent.mkdir()
    counter.write_text("5000000\n")
  meter = EnergyMeter([PROCESSOR])
  for counter in counters:
    counter.write_text(f"{5_000_000 + 1_800_000_000_000}\n")  # 0.5 kWh more
  meter._count()
  for counter in counters:
    counter.write_text("18000000000\n")  # wrapped around
  used = meter.used()
  assert used.kwh == pytest.approx(1.01) and used.method == "measured by RAPL, this machine"


def test_gpus_are_measured_by_nvml(monkeypatch):
  read = iter([1000, 2000, 1000 + 7_200_000_000, 2000])  # millijoules of two boards, twice
  monkeypatch.setitem(
    sys.modules,
    "pynvml",
    types.SimpleNamespace(
      nvmlInit=lambda: None,
      nvmlDeviceGetCount=lambda: 2,
      nvmlDeviceGetHandleByIndex=lambda i: i,
      nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(read),
    ),
  )
  used = EnergyMeter([GPU, GPU]).used()
  assert used.kwh == pytest.approx(2.0) and used.method == "measured by NVML, this machine"


def test_a_device_without_a_counter_uses_its_rated_watts():
  meter = EnergyMeter([GPU] * 8)
  meter.start -= 3600
  used = meter.used()
  assert used.kwh == pytest.approx(8 * 700 * 1.58 / 1000, rel=1e-3) and "8 devices x 700 W rated" in used.method


def test_a_processor_without_a_counter_is_not_measured():
  assert EnergyMeter([PROCESSOR]).used() == hardware.Energy(None, "not measured")
