"""What devices can do at most, and what they cost.

TPUs: Google Cloud's pages "TPU v4", "TPU v5p", "TPU v5e" and "TPU v6e" (read 2026-11): bfloat16 FLOP/s, memory and its
bandwidth, inter-chip bandwidth of all ports together, a chip's share of the pod's data-centre network. GPUs: NVIDIA's
data sheets, links by NVLink in both directions, one 400 Gb/s (A100: 200) adapter a GPU.
Watts: TPU v4 the mean in production (Jouppi et al., 2023, arXiv:2304.01433); GPUs the rated board power; Google has
published none for the others. Prices: on-demand, Google Cloud's list of 2025, an eight-GPU machine's over eight. They
change and were not looked up since: give your own with --price.
"""

import dataclasses

import jax


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
