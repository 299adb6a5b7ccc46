"""Peak performance, power and prices of devices, and the energy that a machine uses during a run.

TPUs: bfloat16 FLOP/s, memory, memory bandwidth, inter-chip bandwidth over all ports, and a chip's share of the
data-centre network, from Google Cloud's pages "TPU v5e" and "TPU v6e" (2026-11); v4 and v5p from the pages of 2025.
GPUs: NVIDIA's data sheets; links are NVLink in both directions, and each GPU has one 400 Gb/s (A100: 200) adapter.
Watts: of TPU v4 the mean in production (Jouppi et al., 2023, arXiv:2304.01433), of GPUs the rated board power; Google
has not published those of the other TPUs. Prices: Google Cloud's on-demand list of 2025, an eight-GPU machine divided
by eight. Prices change: set the current one with --price.
"""

import contextlib
import dataclasses
import logging
import pathlib
import threading
import time
import warnings
from collections.abc import Iterable

import jax

PRICED = "2025"  # the year of the prices
PUE = 1.58  # world average of 2018 (Strubell et al., 2019, arXiv:1906.02243); Google reports 1.09 of its own (2024)


@dataclasses.dataclass(frozen=True)
class Chip:
  """The data sheet of a device, as jax counts devices."""

  kind: str  # a substring of jax's device_kind
  flops: float  # dense bfloat16 FLOP/s
  memory: float  # bytes
  bandwidth: float  # bytes/s of its memory
  links: float  # bytes/s to all its neighbours together
  network: float  # bytes/s to other slices or machines, per device
  watts: float | None  # mean while training, or rated board power
  price: float | None  # dollars per hour


CHIPS = {
  "v4": Chip("TPU v4", 275e12, 32 * 2**30, 1.228e12, 3e11, 6.25e9, 170, 3.22),
  "v5e": Chip("TPU v5 lite", 197e12, 16 * 2**30, 8.19e11, 2e11, 3.125e9, None, 1.20),
  "v5p": Chip("TPU v5", 459e12, 95 * 2**30, 2.765e12, 6e11, 6.25e9, None, 4.20),
  "v6e": Chip("TPU v6 lite", 918e12, 32 * 2**30, 1.6e12, 4e11, 12.5e9, None, 2.70),
  "a100": Chip("A100", 312e12, 80 * 2**30, 2.039e12, 6e11, 25e9, 400, 5.07),
  "h100": Chip("H100", 989.4e12, 80 * 2**30, 3.35e12, 9e11, 50e9, 700, 11.06),
  "h200": Chip("H200", 989.4e12, 141 * 2**30, 4.8e12, 9e11, 50e9, 700, 10.60),
}


def chip_of(device: jax.Device) -> Chip | None:
  """Returns the data sheet of a device, or None if it is not listed, as for a CPU."""
  chips = [chip for chip in CHIPS.values() if chip.kind in device.device_kind]
  return max(chips, key=lambda chip: len(chip.kind), default=None)  # "TPU v5 lite" before "TPU v5"


def kilowatt_hours(watts: float, hours: float, pue: float = PUE) -> float:
  """Returns PUE x watts x hours / 1000; PUE is the power usage effectiveness of the data centre."""
  return pue * watts * hours / 1000


@dataclasses.dataclass(frozen=True)
class Energy:
  """The energy of a run in kWh (None: not measured), and how it was determined."""

  kwh: float | None
  method: str


class EnergyMeter:
  """Measures the energy that this machine uses from the construction of the meter to `used`.

  It reads the counters of the GPUs (NVML) or of the processors (RAPL). If there are none, it uses CodeCarbon if that is
  installed, or else the rated watts of the devices. Counters cover only the GPUs or processors that have them. Only
  rated watts are multiplied by the PUE.
  """

  def __init__(self, devices: Iterable[jax.Device]):
    self.devices, self.start = list(devices), time.time()
    self.joules, self._last, self._ended = 0.0, self._counters(), threading.Event()
    self._tracker = None if self._last else _codecarbon()
    if self._last:
      threading.Thread(target=self._watch, daemon=True).start()

  def used(self) -> Energy:
    """Returns the energy used since the construction; to be called once, at the end."""
    self._ended.set()
    hours = (time.time() - self.start) / 3600
    if self._last:
      self._count()
      names = sorted({name.partition(" ")[0] for name in self._last})
      return Energy(self.joules / 3.6e6, f"measured by {', '.join(names)}, this machine")
    if self._tracker:
      self._tracker.stop()
      return Energy(self._tracker.final_emissions_data.energy_consumed, "estimated by CodeCarbon, this machine")
    chip = chip_of(self.devices[0])
    if chip and chip.watts:
      kwh = kilowatt_hours(chip.watts * len(self.devices), hours)
      return Energy(kwh, f"estimated: {len(self.devices)} devices x {chip.watts:g} W rated x hours x PUE {PUE}")
    return Energy(None, "not measured")

  def _watch(self) -> None:
    while not self._ended.wait(10.0):
      self._count()

  def _count(self) -> None:
    """Adds the increase of each counter; when a RAPL counter wraps around, the energy just before that is lost."""
    for name, joules in self._counters().items():
      before = self._last.get(name, joules)
      self.joules += joules - before if joules >= before else joules
      self._last[name] = joules

  def _counters(self) -> dict[str, float]:
    """Returns the counters that can be read, in joules, by name."""
    return self._nvml() if self.devices[0].platform == "gpu" else self._rapl()

  def _nvml(self) -> dict[str, float]:
    try:
      import pynvml

      pynvml.nvmlInit()
      handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
      return {f"NVML {i}": pynvml.nvmlDeviceGetTotalEnergyConsumption(h) / 1e3 for i, h in enumerate(handles)}
    except Exception:  # pynvml, the driver or the counter is missing
      return {}

  def _rapl(self, root: str = "/sys/class/powercap") -> dict[str, float]:
    joules = {}
    for path in sorted(pathlib.Path(root).glob("intel-rapl:?")):
      with contextlib.suppress(OSError, ValueError):
        joules[f"RAPL {path.name}"] = int((path / "energy_uj").read_text()) / 1e6
    return joules


def _codecarbon():
  """Returns a running offline CodeCarbon tracker, or None if it is not installed or cannot run."""
  try:
    import codecarbon
  except ImportError:
    return None
  logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
  with warnings.catch_warnings(action="ignore"), contextlib.suppress(Exception):  # optional: never fails a run
    tracker = codecarbon.OfflineEmissionsTracker(country_iso_code="USA", save_to_file=False, log_level="critical")
    tracker.start()
    return tracker
  return None
