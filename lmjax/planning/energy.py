"""Energy, carbon emissions and cost of a run, and a published table against which the formula is checked.

    kWh = PUE x hours x watts / 1000,  CO2e = carbon intensity x kWh          (Strubell et al., 2019, arXiv:1906.02243)

Watts are those of the whole machine: processor, memory and accelerators, p_c + p_r + g p_g in the paper.
"""

from typing import Any

from lmjax.planning.aot import Topology
from lmjax.planning.hardware import PRICED, PUE, kilowatt_hours

POUNDS_PER_KWH = 0.954  # the United States in 2018 (EPA), as in the paper
KILOGRAMS_PER_POUND = 0.45359237

# Grams of CO2e per kWh generated in 2023: Ember's Yearly Electricity Data, as published by Our World in Data.
INTENSITY = {
  "US": 369.5, "CA": 170.0, "GB": 237.6, "FR": 56.0, "DE": 381.0, "SE": 40.7, "CN": 582.3,
  "IN": 713.4,
}  # fmt: skip

# Model, hardware, watts (None: not published), hours; published kWh, pounds of CO2e, and range of dollars.
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

# Pounds of CO2e, from table 1 of the paper.
COMPARISONS = {
  "a return flight New York - San Francisco, one passenger": 1984,
  "a human life, one year": 11_023,
  "an American life, one year": 36_156,
  "a car, its lifetime with fuel": 126_000,
}

# Dollars per device and hour, preemptible and on demand, that reproduce the published costs (Google Cloud, 2019).
HOURLY = {
  "P100": (0.43, 1.46), "GTX 1080 Ti": (0.43, 1.46), "V100": (0.74, 2.48), "TPUv2": (1.35, 4.50), "TPUv3": (2.40, 8.00),
}  # fmt: skip


def run_costs(
  report: dict[str, Any],
  target: Topology,
  steps: int,
  pue: float = PUE,
  region: str | None = None,
  watts: float | None = None,
  price: float | None = None,
) -> dict[str, Any]:
  """Returns the duration, energy, emissions and cost of a run at the least time of a step: all are lower bounds.

  Args:
    report: as `planning.report.make_report` returns it.
    pue: power usage effectiveness of the data centre: its energy divided by that of the machines.
    region: a key of `INTENSITY`; by default, the paper's average of the United States.
    watts: per device, by default the chip's.
    price: dollars per device and hour, by default the chip's.
  """
  seconds = report["seconds_per_step"]
  hours = None if seconds is None else steps * seconds / 3600
  watts = watts or (target.chip.watts if target.chip else None)
  listed = "" if price else f" (list of {PRICED}; set the current one with --price)"
  price = price or (target.chip.price if target.chip else None)
  kwh = None if hours is None or watts is None else kilowatt_hours(watts * target.count, hours, pue)
  pounds = INTENSITY[region] / 1000 / KILOGRAMS_PER_POUND if region else POUNDS_PER_KWH
  return {
    "steps": steps,
    "tokens": steps * report["batch"] * report["length"],
    "hours": hours,
    "device_hours": None if hours is None else hours * target.count,
    "kwh": kwh,
    "co2e_lb": None if kwh is None else kwh * pounds,
    "co2e_kg": None if kwh is None else kwh * pounds * KILOGRAMS_PER_POUND,
    "cost_usd": None if hours is None or not price or not report["fits"] else hours * target.count * price,
    "assumptions": {
      "hours": "at the bound, so a minimum; published runs reach 0.46 to 0.71 of the peak (MaxText, v5e and v5p)",
      "watts": f"{watts:g} per device" if watts else "no published figure for this device; set --watts",
      "price": f"${price:g} per device and hour{listed}" if price else "unknown for this device; set --price",
      "pue": f"{pue:g}" + (" (Strubell et al., 2019)" if pue == PUE else ""),
      "carbon": f"{pounds:.3f} lb per kWh" + (f" ({region}, Ember 2023)" if region else " (EPA 2018)"),
      "sources": "lmjax/planning/hardware.py, lmjax/planning/energy.py",
    },
  }


def strubell_rows() -> list[dict[str, Any]]:
  """Returns table 3 of the paper, published and recomputed: kWh, pounds of CO2e, and range of dollars."""
  rows = []
  for model, hardware, watts, hours, published_kwh, published_pounds, published_usd in STRUBELL:
    count, _, kind = hardware.partition(" ")
    kwh = None if watts is None else kilowatt_hours(watts, hours)
    rows.append(
      {
        "model": model,
        "hardware": hardware,
        "watts": watts,
        "hours": hours,
        "published": {"kwh": published_kwh, "co2e_lb": published_pounds, "usd": published_usd},
        "recomputed": {
          "kwh": kwh,
          "co2e_lb": None if kwh is None else POUNDS_PER_KWH * kwh,
          "usd": tuple(int(count) * hours * price for price in HOURLY[kind]),
        },
      }
    )
  return rows
