#!/usr/bin/env bash
# Correctness on this GPU, then training steps and generation in bfloat16: bash benchmarks/gpu.sh [--case gpt2 ...]
# Needs jax with CUDA and lmjax's other dependencies; prints JSON lines with tokens/s and utilisation.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" benchmarks/gpu.py "$@"
