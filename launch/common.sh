# Shared by the launchers, which source it: options, --dry-run, and the plan before a launch.
# shellcheck shell=bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Options of the TPU compiler, for the plan and for the run: gathers and sums of gradients beside computation. By the
# compiler's schedule, see benchmarks/notes/pods.md; the gain was not measured.
tpu_options="--xla_tpu_enable_async_collective_fusion=true --xla_tpu_overlap_compute_collective_tc=true"
tpu_options="$tpu_options --xla_tpu_enable_async_collective_fusion_fuse_all_reduce=true"
tpu_options="$tpu_options --xla_enable_async_all_reduce=true --xla_jf_crs_combiner_threshold_in_bytes=0"

dry=""
lmjax=(lmjax)
command -v lmjax >/dev/null || lmjax=("${PYTHON:-python3}" -m lmjax)

stop() {
  echo "lmjax: $1" >&2
  exit 2
}

# Prints a command and, unless this is a dry run, runs it.
run() {
  printf '%q ' "$@"
  echo
  [ -n "$dry" ] || "$@"
}

# Prints the value of an option; stops if it is missing.
value() {
  [ $# -ge 2 ] || stop "$1 needs a value"
  echo "$2"
}

# Stops a launch whose step does not fit into memory: plan TOPOLOGY SLICES TRAINING_ARGUMENTS...
plan() {
  local topology="$1" slices="$2" kept=()
  shift 2
  while [ $# -gt 0 ]; do
    case "$1" in
      --workdir | --profile) shift ;;
      *) kept+=("$1") ;;
    esac
    shift
  done
  [ -z "${NO_PLAN:-}" ] || return 0
  run "${lmjax[@]}" plan --topology "$topology" --num_slices "$slices" "${kept[@]}" \
    || stop "the step does not fit, or the plan failed (see above); nothing was launched; set NO_PLAN=1 to launch anyway"
}
