#!/usr/bin/env bash
# Launches a run on a Cloud TPU slice: creates a queued resource, installs lmjax on every host, trains, and starts again
# after a preemption (exit code 75, or a lost slice).
#   bash launch/tpu_pod.sh --name gpt2 --zone us-central1-a --type v5litepod-256 --topology v5e-256 --spot \
#     -- --config configs/llama.py:size=7b --workdir gs://bucket/runs/llama
# Requires gcloud with a project, quota for the TPU type, a bucket that the slice can write to, and in --source a
# URL of this repository, https://, that the hosts can reach; they check out the commit that is here.
# --runtime is the software version, by default that of the TPU type.
source "$(dirname "${BASH_SOURCE[0]}")/help.sh"
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

name="" zone="" type="" topology="" runtime="" spot=() slices=1 restarts=20
source_url="$(git remote get-url origin 2>/dev/null || true)" commit="$(git rev-parse HEAD 2>/dev/null || echo HEAD)"
while [ $# -gt 0 ]; do
  case "$1" in
    --name) name="$(value "$@")"; shift ;;
    --zone) zone="$(value "$@")"; shift ;;
    --type) type="$(value "$@")"; shift ;;
    --topology) topology="$(value "$@")"; shift ;;
    --runtime) runtime="$(value "$@")"; shift ;;
    --source) source_url="$(value "$@")"; shift ;;
    --slices) slices="$(value "$@")"; shift ;;
    --restarts) restarts="$(value "$@")"; shift ;;
    --spot) spot=(--spot) ;;
    --dry-run) dry=1 ;;
    --) shift; break ;;
    *) stop "unknown option $1; options of lmjax train come after --" ;;
  esac
  shift
done
[ -n "$name" ] && [ -n "$zone" ] && [ -n "$type" ] || stop "--name, --zone and --type are required (types: v5litepod-256, v5p-128, v4-32, v6e-64)"
# The software of a TPU type has its own version.
case "$type" in
  v5litepod-*) default=v2-alpha-tpuv5-lite ;;
  v5p-*) default=v2-alpha-tpuv5 ;;
  v6e-*) default=v2-alpha-tpuv6e ;;
  *) default=tpu-ubuntu2204-base ;;
esac
runtime="${runtime:-$default}"
case "$*" in *--workdir\ gs://*) ;; *) stop "--workdir must be gs://...: the hosts of a pod have no shared disk" ;; esac
case "$source_url" in
  https://*) ;;
  *) stop "--source must be an https:// URL of this repository that the hosts can reach, not '$source_url'" ;;
esac
[ -n "$dry" ] || command -v gcloud >/dev/null || stop "gcloud is not installed: see cloud.google.com/sdk"

export LIBTPU_INIT_ARGS="$tpu_options"
plan "${topology:-${type/v5litepod/v5e}}" "$slices" "$@"
node=(--node-id "$name")
[ "$slices" = 1 ] || node=(--node-count "$slices" --node-prefix "$name")
ssh=(gcloud compute tpus queued-resources ssh "$name" --zone "$zone" --node all --worker all --batch-size all --command)
# The hosts of a slice may have an older Python than lmjax needs; uv brings one.
install="{ python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' && python3 -m venv .venv; } || \
  { curl -LsSf https://astral.sh/uv/install.sh | sh && ~/.local/bin/uv venv --clear --seed --python 3.12 .venv; }"
install="git clone $source_url lmjax && cd lmjax && git checkout -q $commit && { $install; }"
install="$install && .venv/bin/pip install -q -e . 'jax[tpu]'"
train="cd lmjax && LIBTPU_INIT_ARGS='$tpu_options' .venv/bin/lmjax train $(printf '%q ' "$@")"

for ((attempt = 0; attempt < restarts; attempt++)); do
  run gcloud compute tpus queued-resources create "$name" --zone "$zone" --accelerator-type "$type" \
    --runtime-version "$runtime" "${node[@]}" "${spot[@]}"
  if [ -z "$dry" ]; then
    state=""
    until [ "$state" = ACTIVE ]; do
      sleep 30
      state="$(gcloud compute tpus queued-resources describe "$name" --zone "$zone" --format 'value(state.state)')"
      case "$state" in FAILED | SUSPENDED) stop "the queued resource $name is $state" ;; esac
    done
  fi
  if ! run "${ssh[@]}" "$install"; then
    run gcloud compute tpus queued-resources delete "$name" --zone "$zone" --force --quiet
    stop "lmjax could not be installed on the hosts, and the slice is deleted; see the output above"
  fi
  code=0
  run "${ssh[@]}" "$train" || code=$?
  run gcloud compute tpus queued-resources delete "$name" --zone "$zone" --force --quiet
  # 75: saved and preempted; 69: a host was lost; 255: ssh lost the slice.
  case "$code" in 75 | 69 | 255) echo "preempted: requesting another slice" ;; *) exit "$code" ;; esac
done
