"""Products of a few vectors with int8 weights on a CPU, which XLA would write to memory as float32 first.

They are computed by int8_product.cc, which the machine's C++ compiler (`c++`, or the environment's CXX) translates for
the machine's own processor on first use, in two seconds. The result is kept in ~/.cache/lmjax.
"""

import ctypes
import functools
import hashlib
import os
import pathlib
import platform
import shutil
import subprocess
import tempfile

import jax
import jax.numpy as jnp

from lmjax.layers.backend import einsum_f32

SOURCE = pathlib.Path(__file__).with_suffix(".cc")
NAME = "lmjax_int8_product"
MOST = 32  # vectors; for more, XLA's product of widened weights is as fast
SECONDS = 100  # that a compiler may take


def int8_product(x_TxI: jax.Array, values_OxI: jax.Array, scale_OxG: jax.Array) -> jax.Array:
  """Returns products [T, O] of vectors with int8 weights, whose inputs have a scale for each of G equal groups.

  y[t, o] = sum over groups g of scale[o, g] * (sum over i in g of x[t, i] * values[o, i]), in float32.
  """
  (vectors, inputs), (outputs, groups) = x_TxI.shape, scale_OxG.shape
  x_TxI = x_TxI.astype(jnp.float32)
  if vectors <= MOST and available():
    result = jax.ShapeDtypeStruct((vectors, outputs), jnp.float32)
    return jax.ffi.ffi_call(NAME, result)(x_TxI, values_OxI, scale_OxG)
  split_OxGxI = values_OxI.reshape(outputs, groups, inputs // groups).astype(jnp.float32)
  if vectors == 1:  # a sum that is written out reads the integers themselves
    sums_OxG = jnp.sum(split_OxGxI * x_TxI.reshape(1, groups, -1), axis=-1)
    return jnp.sum(sums_OxG * scale_OxG, axis=-1)[None]
  return einsum_f32("ti,oi->to", x_TxI, (split_OxGxI * scale_OxG[..., None]).reshape(outputs, inputs))


@functools.cache
def available() -> bool:
  """Returns whether the machine has the compiled program, which is compiled if it has not been."""
  compiler = shutil.which(os.environ.get("CXX") or "c++")
  if not compiler:
    return False
  caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  folder, name = pathlib.Path(caches, "lmjax", "kernels"), f"{SOURCE.stem}-{_key(compiler)}"
  try:
    folder.mkdir(parents=True, exist_ok=True)
    for library in folder.glob(f"{name}-*.so"):
      if library.name == f"{name}-{_digest(library.read_bytes())}.so":
        return _load(library)
    return _load(_compile(compiler, folder, name))
  except OSError:  # the folder cannot be written or read
    pass
  with tempfile.TemporaryDirectory() as other:
    try:
      return _load(_compile(compiler, pathlib.Path(other), name))
    except OSError:
      return False


def _digest(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()[:24]


def _key(compiler: str) -> str:
  """Returns a hash of all that the compiled program depends on: the source, jax, the compiler and the processor."""
  parts = (jax.__version__, compiler, platform.machine(), _processor())
  return _digest(SOURCE.read_bytes() + "\0".join(parts).encode())


def _processor() -> str:
  """Returns the processor's instruction sets, or its name where these are not listed."""
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    return platform.processor()
  return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def _compile(compiler: str, folder: pathlib.Path, name: str) -> pathlib.Path:
  """Compiles the program; returns the library, whose name ends with the digest of its content.

  Raises:
    OSError: the compiler fails, or the library cannot be written.
  """
  command = [compiler, "-std=c++17", "-O3", "-shared", "-fPIC", "-w", f"-I{jax.ffi.include_dir()}", str(SOURCE)]
  with tempfile.TemporaryDirectory(dir=folder) as new:
    made = pathlib.Path(new, "made.so")
    for options in (["-march=native"], ["-mcpu=native"], []):
      try:
        done = subprocess.run([*command, *options, "-o", str(made)], capture_output=True, timeout=SECONDS)
      except subprocess.TimeoutExpired as error:
        raise OSError(f"{compiler} takes too long") from error
      if done.returncode == 0:
        return made.replace(folder / f"{name}-{_digest(made.read_bytes())}.so")
  raise OSError(f"{compiler} cannot compile {SOURCE.name}")


def _load(library: pathlib.Path) -> bool:
  """Loads the library and makes its program known to XLA; returns True.

  Raises:
    OSError: it cannot be loaded.
  """
  try:
    program = getattr(ctypes.CDLL(str(library)), NAME)
  except AttributeError as error:
    raise OSError(f"{library} has no {NAME}") from error
  jax.ffi.register_ffi_target(NAME, jax.ffi.pycapsule(program), platform="cpu")
  return True
