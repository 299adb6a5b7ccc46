# Shared by the launchers, which source it: options, --dry-run, and the plan before a launch.
# shellcheck shell=bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

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
