"""Energy, carbon and money, and a published table to check the formula by.

    kWh = PUE x hours x watts / 1000,  CO2e = carbon intensity x kWh          (Strubell et al., 2019, arXiv:1906.02243)

Watts are the whole machine's share: processor, memory and accelerators, p_c + p_r + g p_g in the paper.
"""

from lmjax.planning.hardware import kilowatt_hours

POUNDS_PER_KWH = 0.954  # the United States in 2018 (EPA), as in the paper
KILOGRAMS_PER_POUND = 0.45359237

# Grams of CO2e a kWh of what was generated in 2023: Ember's Yearly Electricity Data, as Our World in Data keeps them.
INTENSITY = {
  "US": 369.5, "CA": 170.0, "GB": 237.6, "FR": 56.0, "DE": 381.0, "SE": 40.7, "CN": 582.3,
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
