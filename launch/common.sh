# What the launchers share: options, --dry-run, and the plan before the launch; sourced by them.
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

# Prints a command, and runs it unless this is a dry run.
run() {
  printf '%q ' "$@"
  echo
  [ -n "$dry" ] || "$@"
}

# The value of an option, or a message.
value() {
  [ $# -ge 2 ] || stop "$1 needs a value"
  echo "$2"
}

# Refuses a launch that does not fit: plan TOPOLOGY SLICES TRAINING_ARGUMENTS...
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
    || stop "the plan above does not fit, or could not be made; nothing was launched (NO_PLAN=1 launches anyway)"
}
