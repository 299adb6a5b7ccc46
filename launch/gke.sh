#!/usr/bin/env bash
# Launches a run on GKE as a JobSet, with one job per TPU slice: fills in launch/jobset.yaml and applies it.
#   bash launch/gke.sh --name llama --image REGION-docker.pkg.dev/PROJECT/lmjax --accelerator tpu-v5-lite-podslice \
#     --grid 16x16 --slices 2 -- --config configs/llama.py:size=7b --workdir gs://bucket/runs/llama
# Requires kubectl for a cluster with TPU node pools and JobSet, and an image with lmjax and jax[tpu].
source "$(dirname "${BASH_SOURCE[0]}")/help.sh"
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

name="" image="" accelerator="" grid="" slices=1 chips_per_host=4 restarts=100
while [ $# -gt 0 ]; do
  case "$1" in
    --name) name="$(value "$@")"; shift ;;
    --image) image="$(value "$@")"; shift ;;
    --accelerator) accelerator="$(value "$@")"; shift ;;
    --grid) grid="$(value "$@")"; shift ;;
    --slices) slices="$(value "$@")"; shift ;;
    --chips_per_host) chips_per_host="$(value "$@")"; shift ;;
    --restarts) restarts="$(value "$@")"; shift ;;
    --dry-run) dry=1 ;;
    --) shift; break ;;
    *) stop "unknown option $1; options of lmjax train come after --" ;;
  esac
  shift
done
[ -n "$name" ] && [ -n "$image" ] && [ -n "$grid" ] || stop "--name, --image, --accelerator and --grid are required"
case "$*" in *--workdir\ gs://*) ;; *) stop "--workdir must be gs://...: the hosts of a pod have no shared disk" ;; esac
case "$accelerator" in
  tpu-v4-podslice) chip=v4 ;;
  tpu-v5-lite-podslice) chip=v5e ;;
  tpu-v5p-slice) chip=v5p ;;
  tpu-v6e-slice) chip=v6e ;;
  *) stop "unknown --accelerator '$accelerator'; choose one of tpu-v4-podslice tpu-v5-lite-podslice tpu-v5p-slice tpu-v6e-slice" ;;
esac

export LIBTPU_INIT_ARGS="$tpu_options"
plan "$chip:$grid" "$slices" "$@"
chips=$((${grid//x/*}))
hosts=$(((chips + chips_per_host - 1) / chips_per_host))
arguments="$(printf '"%s", ' "$@")"
escaped="${arguments//&/\\&}"
manifest="$(sed -e "s|NAME|$name|g" -e "s|IMAGE|$image|g" -e "s|ACCELERATOR|$accelerator|g" -e "s|GRID|$grid|g" \
  -e "s|SLICES|$slices|g" -e "s|HOSTS|$hosts|g" -e "s|CHIPS|$chips_per_host|g" -e "s|RESTARTS|$restarts|g" -e "s|OPTIONS|$tpu_options|g" \
  -e "s|ARGUMENTS|${escaped%, }|g" launch/jobset.yaml)"
echo "$manifest"
if [ -z "$dry" ]; then
  command -v kubectl >/dev/null || stop "kubectl is not installed"
  kubectl apply -f - <<<"$manifest"
fi
