"""Ahead-of-time compilation for absent devices: topologies by name, and the memory and collectives of a step."""

import contextlib
import dataclasses
import importlib.util
import math
import os
import pathlib
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache

from lmjax.planning.hardware import CHIPS, Chip
from lmjax.utils.errors import UserError, did_you_mean

# Grids by the number of chips: two axes on v5e and v6e (8 chips are 2x4), three on v4 and v5p.
PLANES = {n: (2 ** (k // 2), 2 ** (k - k // 2)) for k in range(9) for n in [2**k]}
CUBES = {4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4)} | {
  2**k: tuple(2 ** ((k + i) // 3) for i in range(3)) for k in range(5, 14)
}
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Topology:
  """The devices to plan for: their chip and number, and for TPUs the grid of a slice and the number of slices."""

  name: str
  chip: Chip | None  # None for a CPU
  count: int  # in all slices
  grid: tuple[int, ...] = ()
  slices: int = 1

  @property
  def wrap(self) -> tuple[bool, ...]:
    """Along which axes of the grid, of three, the links close a ring.

    On v4 and v5p optical switches close those of whole cubes of 4 x 4 x 4 chips; on v5e and v6e an axis of 16 chips,
    the length of a pod, has links between its ends. Without them a collective takes about twice as long, and the
    compiler chooses others.
    """
    if len(self.grid) == 3:
      return (all(size % 4 == 0 for size in self.grid),) * 3
    return (*(size == 16 for size in self.grid), False)

  @property
  def compiles(self) -> bool:
    """Whether a step can be compiled for these devices on a machine that does not have them."""
    return bool(self.grid)

  def devices(self) -> list[jax.Device]:
    """Returns descriptions of the absent devices, for which the TPU compiler compiles.

    Raises:
      UserError: libtpu is not installed, or does not support the grid.
    """
    variables = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_STDERR_LOG_LEVEL": "3"}
    variables["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # several plans may run at the same time
    for name, value in variables.items():
      os.environ.setdefault(name, value)
    options: dict[str, Any] = {"wrap": self.wrap} | ({"num_slices": self.slices} if self.slices > 1 else {})
    if self.name.startswith("v4"):
      options["chip_config_name"] = "megacore"  # one device per chip, as on the hardware
    shape = "x".join(map(str, self.grid))
    try:
      with _silent():
        return list(topologies.get_topology_desc(f"{self.name}:{shape}", "tpu", **options).devices)
    except (ImportError, RuntimeError) as error:
      reason = str(error).strip().splitlines()[0] if str(error).strip() else "libtpu cannot be loaded"
      advice = "install libtpu with pip install 'lmjax[plan]'"
      if importlib.util.find_spec("libtpu"):
        grids = (CUBES if len(self.grid) > 2 else PLANES).values()
        advice = f"grids that there are: {', '.join('x'.join(map(str, grid)) for grid in grids)}"
      raise UserError(f"plan: cannot compile for {self.name}:{shape} ({reason}); {advice}") from error


@contextlib.contextmanager
def _silent() -> Iterator[None]:
  """Keeps out of the terminal what libtpu's own code writes to standard error while it looks for a TPU."""
  try:
    kept = os.dup(2)
  except OSError:  # it is closed
    yield
    return
  sys.stderr.flush()
  nothing = os.open(os.devnull, os.O_WRONLY)
  os.dup2(nothing, 2)
  os.close(nothing)
  try:
    yield
  finally:
    os.dup2(kept, 2)
    os.close(kept)


def parse_topology(text: str, slices: int = 1) -> Topology:
  """Returns the topology of a string: `v5e:16x16` (grid of chips), `v5e-256` (product name), `h100:8` or `cpu:8`.

  Product names of v4 and v5p count TensorCores, two per chip: v5p-1024 has 512 chips.

  Raises:
    UserError: the name or the size is unknown.
  """
  name, separator, size = text.partition(":") if ":" in text else text.partition("-")
  numbers = size.split("x")
  if name not in (*CHIPS, "cpu") or not all(n.isdigit() and int(n) for n in numbers):
    known = did_you_mean(name, (*CHIPS, "cpu")) if name not in (*CHIPS, "cpu") else ""
    raise UserError(f"plan: unknown topology {text!r}{known}; write v5e:16x16, v5e-256, h100:8 or cpu:8")
  grid = tuple(map(int, numbers))
  chip = CHIPS.get(name)
  if not name.startswith("v"):
    return Topology(name, chip, math.prod(grid) * slices)
  if len(grid) == 1:
    chips = grid[0] // 2 if separator == "-" and name in ("v4", "v5p") else grid[0]
    shapes = CUBES if name in ("v4", "v5p") else PLANES
    if chips not in shapes:
      raise UserError(
        f"plan: no {name} slice has {chips} chips; there are {', '.join(map(str, shapes))}, or write a grid"
      )
    grid = shapes[chips]
  return Topology(name, chip, math.prod(grid) * slices, grid, slices)


@dataclasses.dataclass
class Compiled:
  """The memory of a step in bytes per device, and its collectives as `collectives` returns them (None: unknown).

  arguments: of the state and the batch. output: what is not written in place of an argument. total: the sum of the
  three.
  """

  arguments: int
  temporaries: int
  output: int
  fits: bool
  seconds: float  # of compilation
  collectives: dict[str, dict[str, float]] | None
  accessed: float = 0.0  # bytes that operations read and write; a loop's body counts once

  @property
  def total(self) -> int:
    return self.arguments + self.temporaries + self.output


def compile_step(lowered: jax.stages.Lowered, capacity: float, slices: int, start: float) -> Compiled:
  """Compiles a lowered step and returns its memory and collectives; if it does not fit, its collectives are None.

  Args:
    capacity: bytes of memory of a device.
    slices: number of TPU slices, between which collectives use the network.
    start: the `time.perf_counter()` from which the seconds of compilation are counted.
  """
  cached = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]  # jax adds its options at import
  _use_cache(False)  # programs compiled for absent devices cannot be loaded
  dump = tempfile.TemporaryDirectory()
  try:
    # Not `as_text`: jax 0.10 cannot parse some asynchronous operations of libtpu 0.0.52.
    compiled = lowered.compile({"xla_dump_to": dump.name, "xla_dump_hlo_as_text": True})
    (text,) = (file.read_text() for file in pathlib.Path(dump.name).glob("*.after_optimizations.txt"))
  except jax.errors.JaxRuntimeError as error:
    used = re.search(r"[Uu]sed ([\d.]+)([MG]) of", str(error))
    if "RESOURCE_EXHAUSTED" not in str(error) and not used:
      raise
    total = float(used[1]) * 2 ** {"M": 20, "G": 30}[used[2]] if used else 2 * capacity
    return Compiled(0, int(total), 0, False, time.perf_counter() - start, None)
  finally:
    dump.cleanup()
    _use_cache(cached)
  memory = compiled.memory_analysis()
  output = memory.output_size_in_bytes - memory.alias_size_in_bytes  # donated arguments become outputs in place
  arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
  fits = arguments + temporaries + output <= capacity
  moved = collectives(text, slices)
  accessed = (compiled.cost_analysis() or {}).get("bytes accessed", 0.0)
  return Compiled(arguments, temporaries, output, fits, time.perf_counter() - start, moved, accessed)


def _use_cache(enabled: bool) -> None:
  """Turns jax's persistent compilation cache on or off; jax reads the setting only once unless the cache is reset."""
  jax.config.update("jax_enable_compilation_cache", enabled)
  compilation_cache.reset_cache()


def collectives(text: str, slices: int = 1) -> dict[str, dict[str, float]]:
  """Returns {kind: {count, bytes, network_bytes, beside_bytes}} per step and device of an optimized HLO module.

  Collectives in loops count once per iteration. Bytes are what a ring algorithm moves through each of n devices:
  (n - 1) / n of the whole array for all-gather, reduce-scatter and all-to-all, twice that for all-reduce; all of it for
  collective-permute. network_bytes is the part of them between slices; beside_bytes those that are moved while the
  device computes: by the schedule, there are operations between their start and their end.

  An asynchronous collective appears in several fused computations, with the channel, the chain and the origin of one,
  and is counted once. Explicit collectives of a `shard_map` have the channel 1, all of them.
  """
  bodies = {m[1]: m[2] for m in re.finditer(r"^(?:ENTRY )?%?([\w.\-]+) [^\n]*\{\n(.*?)^\}$", text, re.M | re.S)}
  times = _multiplicities(text, bodies)
  totals = {kind: dict.fromkeys(("count", "bytes", "network_bytes", "beside_bytes"), 0.0) for kind in KINDS}
  seen = set()
  pattern = re.compile(rf"%([\w.\-]+) = (.*?) ({'|'.join(KINDS)})(-start)?\((.*?)\), (.*)")
  for name, body in bodies.items():
    for line in body.splitlines():
      match = pattern.search(line)
      if not match:
        continue
      own, output, kind, start, _, rest = match.groups()
      channel, origin = re.search(r"channel_id=(\d+)", rest), re.search(r"metadata=\{.*?\}", rest)
      chain = re.search(r'chain_id="(\d+)"', rest)
      key = (kind, channel[1], origin and origin[0], *_shapes(output)) if channel else (kind, name, line)
      if key in seen:
        continue
      seen.add(key)
      size, spanned = _group(rest, slices)
      whole = _bytes(output, result=bool(start) and kind != "all-reduce")
      if kind == "reduce-scatter":
        whole *= size
      moved = whole * (1.0 if kind == "collective-permute" else (size - 1) / size) * (2 if kind == "all-reduce" else 1)
      moved *= times.get(name, 1.0)
      totals[kind]["count"] += times.get(name, 1.0)
      totals[kind]["bytes"] += moved
      totals[kind]["network_bytes"] += moved * (spanned - 1) / max(size - 1, 1)
      totals[kind]["beside_bytes"] += moved * bool(chain or (start and _computes_beside(body, own)))
  return {kind: total for kind, total in totals.items() if total["count"]}


def _computes_beside(body: str, start: str) -> bool:
  """Returns whether a computation has work between the start of a collective and its end, in the compiler's order."""
  between = re.search(rf"%{re.escape(start)} = .*?\n(.*?)-done\(.*?%{re.escape(start)}\)", body, re.S)
  return bool(between and re.search(r" (?:fusion|convolution|dot|custom-call|while|call)\(", between[1]))


def _multiplicities(text: str, bodies: dict[str, str]) -> dict[str, float]:
  """Returns how often each computation runs in a step; a loop's trip count is the constant in its condition."""
  entry = re.search(r"^ENTRY %?([\w.\-]+)", text, re.M)[1]
  times: dict[str, float] = {}

  def visit(name: str, factor: float) -> None:
    if name not in bodies or times.get(name, 0.0) >= factor:
      return
    times[name] = factor
    body = bodies[name]
    loops = {}
    for match in re.finditer(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)", body):
      loops[match[2]] = _trips(match[1], bodies)
    for inner in set(re.findall(r"(?:calls|to_apply|body|condition|branch_computations)=\{?%?([\w.\-]+)", body)):
      visit(inner, factor * loops.get(inner, 1))

  visit(entry, 1.0)
  return times


def _trips(condition: str, bodies: dict[str, str], depth: int = 3) -> int:
  """Returns a loop's trip count: the largest integer constant in its condition, with which the counter is compared."""
  body = bodies.get(condition, "")
  constants = [int(n) for n in re.findall(r"s32\[\]\S* constant\((\d+)\)", body)]
  if depth:
    constants += [_trips(inner, bodies, depth - 1) for inner in re.findall(r"calls=%?([\w.\-]+)", body)]
  return max(constants, default=1)


def _group(rest: str, slices: int) -> tuple[int, int]:
  """Returns the number of devices in a replica group and of slices it spans; devices of a slice have adjacent ids."""
  mesh = re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", rest)
  if mesh:
    sizes = {axis: int(n) for axis, n in re.findall(r"'?([\w]+)'?=(\d+)", mesh[1])}
    axes = re.findall(r"'([\w]+)'(?::\((\d+)\)(\d+))?", mesh[2])
    size = math.prod(int(part) if part else sizes[axis] for axis, _, part in axes)
    across = bool(axes) and axes[0][0] == next(iter(sizes))  # the first axis is the outermost
    return max(size, 1), min(slices, size) if across else 1
  groups = np.zeros((1, 1), int)
  if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
    shape, dims, order = (tuple(map(int, part.split(","))) if part else None for part in iota.groups())
    groups = np.arange(math.prod(dims)).reshape(dims).transpose(order).reshape(shape)
  elif listed := re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", rest):
    groups = np.array([[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", listed[1])])
  per_slice = max(groups.size // slices, 1)
  return groups.shape[1], max(len(set(group)) for group in groups // per_slice)


def _shapes(text: str) -> list[tuple[str, str]]:
  """Returns the types and sizes of an HLO shape, or of all shapes of a tuple."""
  return re.findall(r"\b([a-z]+\d+|pred)\[([\d,]*)\]", text)


def _bytes(text: str, result: bool = False) -> int:
  """Returns the bytes of an HLO shape, or of all shapes of a tuple; result: of its second half, the first is input."""
  width = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "f64": 8}
  shapes = _shapes(text)
  if result:
    shapes = [shape for shape in shapes if shape[1]]  # without the counters of the collective
    shapes = shapes[len(shapes) // 2 :]
  return sum(width.get(kind, 4) * math.prod(int(n) for n in size.split(",") if n) for kind, size in shapes)
