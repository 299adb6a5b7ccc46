"""Energy, carbon and money: estimated before a run, measured during it, and a published table to check the formula by.

    kWh = PUE x hours x watts / 1000,  CO2e = carbon intensity x kWh          (Strubell et al., 2019, arXiv:1906.02243)

Watts are the whole machine's share: processor, memory and accelerators, p_c + p_r + g p_g in the paper.
"""

import contextlib
import dataclasses
import logging
import pathlib
import time
import warnings

from lmjax.planning.hardware import chip_of

PUE = 1.58  # the world's data centres in 2018, as in the paper; Google states 1.09 for its own (2024 report)
POUNDS_PER_KWH = 0.954  # the United States in 2018 (EPA), as in the paper
KILOGRAMS_PER_POUND = 0.45359237

# Grams of CO2e a kWh of what was generated in 2023: Ember's Yearly Electricity Data, as Our World in Data keeps them.
INTENSITY = {
  "world": 481.0, "EU": 242.0, "US": 369.5, "CA": 170.0, "GB": 237.6, "FR": 56.0, "DE": 381.0, "SE": 40.7, "CN": 582.3,
  "IN": 713.4,
}  # fmt: skip

# Model, hardware, watts (None: not given, cost only), hours; kWh, CO2e in pounds and dollars as published.
STRUBELL = (
  ("Transformer base", "8 P100", 1415.78, 12, 27, 26, (41, 140)),
  ("Transformer big", "8 P100", 1515.43, 84, 201, 192, (289, 981)),
  ("ELMo", "3 GTX 1080 Ti", 517.66, 336, 275, 262, (433, 1472)),
  ("BERT base", "64 V100", 12_041.51, 79, 1507, 1438, (3751, 12_571)),
  ("BERT base", "16 TPUv2", None, 96, None, None, (2074, 6912)),
  ("architecture search", "8 P100", 1515.43, 274_120, 656_347, 626_155, (942_973, 3_201_722)),
  ("architecture search", "1 TPUv2", None, 32_623, None, None, (44_055, 146_848)),
  ("GPT-2", "32 TPUv3", None, 168, None, None, (12_902, 43_008)),
)

# Pounds of CO2e, the paper's table 1.
COMPARISONS = {
  "a return flight New York - San Francisco, one passenger": 1984,
  "a human life, one year": 11_023,
  "an American life, one year": 36_156,
  "a car, its lifetime with fuel": 126_000,
}

# Dollars an hour, preemptible and on demand, that give the published costs (Google Cloud, 2019).
HOURLY = {
  "P100": (0.43, 1.46), "GTX 1080 Ti": (0.43, 1.46), "V100": (0.74, 2.48), "TPUv2": (1.35, 4.50), "TPUv3": (2.40, 8.00),
}  # fmt: skip


def kilowatt_hours(watts: float, hours: float, pue: float = PUE) -> float:
  """Returns the energy of `hours` at `watts`, the building's overhead included."""
  return pue * watts * hours / 1000


def strubell_table() -> list[dict]:
  """Returns the paper's table 3, each published figure beside ours: kWh, pounds of CO2e, dollars."""
  rows = []
  for model, hardware, watts, hours, kwh, pounds, dollars in STRUBELL:
    count, _, kind = hardware.partition(" ")
    ours = None if watts is None else kilowatt_hours(watts, hours)
    rows.append(
      {
        "model": model,
        "hardware": hardware,
        "watts": watts,
        "hours": hours,
        "published": {"kwh": kwh, "co2e_lb": pounds, "usd": dollars},
        "ours": {
          "kwh": ours,
          "co2e_lb": None if ours is None else POUNDS_PER_KWH * ours,
          "usd": tuple(int(count) * hours * price for price in HOURLY[kind]),
        },
      }
    )
  return rows


@dataclasses.dataclass(frozen=True)
class Used:
  """The energy of a run and how it is known; kwh None is not measured."""

  kwh: float | None
  how: str


class Meter:
  """Counts the energy of this machine from its making on.

  By the counters of its GPUs (NVML) or processors (RAPL), else by CodeCarbon where that is installed, else by the
  devices' rated watts. Counters see their own parts alone; only the rating is multiplied by the PUE.
  """

  def __init__(self, devices):
    self.devices, self.began = list(devices), time.time()
    self.start = self._joules()
    self._tracker = None if self.start else _codecarbon()

  def used(self) -> Used:
    """Returns what was used since; to be asked once, at the end."""
    now, hours = self._joules(), (time.time() - self.began) / 3600
    parts = [name for name in now if name in self.start]
    if parts:
      kwh = sum(max(now[p] - self.start[p], 0.0) for p in parts) / 3.6e6
      return Used(kwh, f"measured by {', '.join(sorted({p.partition(' ')[0] for p in parts}))}, this machine")
    if self._tracker:
      self._tracker.stop()
      return Used(self._tracker.final_emissions_data.energy_consumed, "estimated by CodeCarbon, this machine")
    chip = chip_of(self.devices[0])
    if chip and chip.watts:
      kwh = kilowatt_hours(chip.watts * len(self.devices), hours)
      return Used(kwh, f"estimated: {len(self.devices)} devices x {chip.watts:g} W rated x hours x PUE {PUE}")
    return Used(None, "not measured")

  def _joules(self) -> dict[str, float]:
    """Returns the counters that can be read, by name."""
    return self._nvml() if self.devices[0].platform == "gpu" else self._rapl()

  def _nvml(self) -> dict[str, float]:
    try:
      import pynvml

      pynvml.nvmlInit()
      handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
      return {f"NVML {i}": pynvml.nvmlDeviceGetTotalEnergyConsumption(h) / 1e3 for i, h in enumerate(handles)}
    except Exception:  # not installed, no driver, a board without the counter
      return {}

  def _rapl(self, root: str = "/sys/class/powercap") -> dict[str, float]:
    found = {}
    for path in sorted(pathlib.Path(root).glob("intel-rapl:?")):
      with contextlib.suppress(OSError, ValueError):
        found[f"RAPL {path.name}"] = int((path / "energy_uj").read_text()) / 1e6
    return found


def _codecarbon():
  """Returns a running CodeCarbon tracker that needs no network, or None where it is not installed or cannot run."""
  try:
    import codecarbon
  except ImportError:
    return None
  logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
  with warnings.catch_warnings(action="ignore"), contextlib.suppress(Exception):  # no run fails for want of a meter
    tracker = codecarbon.OfflineEmissionsTracker(country_iso_code="USA", save_to_file=False, log_level="critical")
    tracker.start()
    return tracker
  return None
