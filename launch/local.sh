#!/usr/bin/env bash
# Runs several processes with simulated devices on this machine, as stand-ins for the hosts of a pod, for debugging.
#   bash launch/local.sh --processes 2 --devices 4 -- --config configs/quickstart.py:debug --workdir runs/local
# --dry-run prints the commands. The processes connect through --port (default 5555) and the port after it.
source "$(dirname "${BASH_SOURCE[0]}")/help.sh"
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

processes=1 devices=8 port=5555
while [ $# -gt 0 ]; do
  case "$1" in
    --processes) processes="$(value "$@")"; shift ;;
    --devices) devices="$(value "$@")"; shift ;;
    --port) port="$(value "$@")"; shift ;;
    --dry-run) dry=1 ;;
    --) shift; break ;;
    *) stop "unknown option $1; options of lmjax train come after --" ;;
  esac
  shift
done
[ $# -gt 0 ] || stop "the options of lmjax train are missing: -- --config ... --workdir ..."

plan "cpu:$((processes * devices))" 1 "$@"
children=()
trap 'kill -TERM "${children[@]}" 2>/dev/null || true' INT TERM # they save and exit
for ((i = 0; i < processes; i++)); do
  command=(env JAX_PLATFORMS=cpu "XLA_FLAGS=--xla_force_host_platform_device_count=$devices" "NPROC=$((4 * devices))"
    "LMJAX_COORDINATOR=localhost:$port" "LMJAX_PROCESSES=$processes" "LMJAX_PROCESS=$i" "${lmjax[@]}" train "$@")
  if [ -n "$dry" ]; then
    run "${command[@]}"
  else
    "${command[@]}" &
    children+=($!)
  fi
done
code=0
for child in "${children[@]}"; do
  while kill -0 "$child" 2>/dev/null; do # a signal interrupts wait
    wait "$child" || code=$?
  done
done
exit "$code"
