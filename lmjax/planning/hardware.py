"""What devices can do at most and what they cost, and the energy that a machine uses while it runs.

TPUs: bfloat16 FLOP/s, memory and its bandwidth, inter-chip bandwidth of all ports together, a chip's share of the pod's
data-centre network, as Google Cloud's pages "TPU v5e" and "TPU v6e" give them (read 2026-11); v4 and v5p after their
pages of 2025, not read again. GPUs: NVIDIA's data sheets, not read again; links by NVLink in both directions, one 400
Gb/s (A100: 200) adapter a GPU.
Watts: TPU v4 the mean in production (Jouppi et al., 2023, arXiv:2304.01433); GPUs the rated board power; Google has
published none for the others. Prices: on-demand, Google Cloud's list of 2025, an eight-GPU machine's over eight. They
change and were not looked up since: give your own with --price.
"""

import contextlib
import dataclasses
import logging
import pathlib
import threading
import time
import warnings

import jax

PUE = 1.58  # the world's data centres in 2018, as in the paper; Google states 1.09 for its own (2024 report)


@dataclasses.dataclass(frozen=True)
class Chip:
  """One device as jax counts it."""

  kind: str  # a part of jax's device_kind
  flops: float  # dense bfloat16 FLOP/s
  memory: float  # bytes
  bandwidth: float  # bytes/s of its memory
  links: float  # bytes/s to its neighbours, all together
  network: float  # bytes/s to another slice or machine, a device's share
  watts: float | None  # while training, or the board's rating
  price: float | None  # dollars an hour


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
  """Returns what is known of a device, or None (of a CPU, say)."""
  found = [chip for chip in CHIPS.values() if chip.kind in device.device_kind]
  return max(found, key=lambda chip: len(chip.kind), default=None)  # "TPU v5 lite" before "TPU v5"


def kilowatt_hours(watts: float, hours: float, pue: float = PUE) -> float:
  """Returns the energy of `hours` at `watts`, the building's overhead included."""
  return pue * watts * hours / 1000


@dataclasses.dataclass(frozen=True)
class Used:
  """The energy of a run and how it is known; kwh None is not measured."""

  kwh: float | None
  method: str


class EnergyMeter:
  """Counts the energy of this machine from its making on.

  By the counters of its GPUs (NVML) or processors (RAPL), else by CodeCarbon where that is installed, else by the
  devices' rated watts. Counters see their own parts alone; only the rating is multiplied by the PUE.
  """

  def __init__(self, devices):
    self.devices, self.began = list(devices), time.time()
    self.joules, self._last, self._ended = 0.0, self._counters(), threading.Event()
    self._tracker = None if self._last else _codecarbon()
    if self._last:
      threading.Thread(target=self._watch, daemon=True).start()

  def used(self) -> Used:
    """Returns what was used since; to be asked once, at the end."""
    self._ended.set()
    hours = (time.time() - self.began) / 3600
    if self._last:
      self._count()
      names = sorted({name.partition(" ")[0] for name in self._last})
      return Used(self.joules / 3.6e6, f"measured by {', '.join(names)}, this machine")
    if self._tracker:
      self._tracker.stop()
      return Used(self._tracker.final_emissions_data.energy_consumed, "estimated by CodeCarbon, this machine")
    chip = chip_of(self.devices[0])
    if chip and chip.watts:
      kwh = kilowatt_hours(chip.watts * len(self.devices), hours)
      return Used(kwh, f"estimated: {len(self.devices)} devices x {chip.watts:g} W rated x hours x PUE {PUE}")
    return Used(None, "not measured")

  def _watch(self) -> None:
    while not self._ended.wait(10.0):
      self._count()

  def _count(self) -> None:
    """Adds what the counters have counted; RAPL's start anew after some 262 kJ, at the cost of the seconds before."""
    for name, joules in self._counters().items():
      before = self._last.get(name, joules)
      self.joules += joules - before if joules >= before else joules
      self._last[name] = joules

  def _counters(self) -> dict[str, float]:
    """Returns the counters that can be read, by name, in joules."""
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
