"""What devices can do at most, each figure with its source."""

import jax

# Dense bfloat16 FLOP/s of one device, by a part of `device_kind`; vendors' data sheets, read 2026-11.
PEAK_FLOPS = {
  "H200": 989.4e12,  # NVIDIA H200 data sheet: SXM, without sparsity
  "H100": 989.4e12,  # NVIDIA H100 data sheet: SXM, without sparsity
  "A100": 312e12,  # NVIDIA A100 data sheet
  "TPU v4": 275e12,  # Google Cloud, "TPU v4"
  "TPU v5 lite": 197e12,  # Google Cloud, "TPU v5e"
  "TPU v5p": 459e12,  # Google Cloud, "TPU v5p"
  "TPU v5": 459e12,  # v5p as jax names it
  "TPU v6 lite": 918e12,  # Google Cloud, "Trillium"
}


def peak_flops(device: jax.Device) -> float | None:
  """Returns the device's dense bfloat16 FLOP/s, or None where it is not known (a CPU, say)."""
  for name, flops in PEAK_FLOPS.items():
    if name in device.device_kind:
      return flops
  return None
