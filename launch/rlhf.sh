#!/usr/bin/env bash
# The path of InstructGPT from scratch with a small decoder: fine-tuning, a reward model, PPO against it, and DPO.
#   bash launch/rlhf.sh --files instruction-data-with-preference.json --workdir runs/rlhf
# --files: comparisons with a prompt, see lmjax.data.sources.preferences; 5 % of them are held out at every stage.
# --steps: of every stage, to try the script; --dry-run prints the commands. Repeat the command to resume: a finished stage is passed over.
source "$(dirname "${BASH_SOURCE[0]}")/help.sh"
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

files="" workdir="runs/rlhf" steps=""
while [ $# -gt 0 ]; do
  case "$1" in
    --files) files="$(value "$@")"; shift ;;
    --workdir) workdir="$(value "$@")"; shift ;;
    --steps) steps="$(value "$@")"; shift ;;
    --dry-run) dry=1 ;;
    *) stop "unknown option $1" ;;
  esac
  shift
done
[ -n "$files" ] || stop "--files is required: JSON lines or lists of comparisons"

# Trains one stage: stage NAME CONFIG STEPS ARGUMENTS...
stage() {
  local name="$1" config="$2" number="${steps:-$3}"
  shift 3
  echo "== $name"
  run "${lmjax[@]}" train --config "$config" --workdir "$workdir/$name" --config.steps="$number" "$@"
}

sft="$workdir/sft" reward="$workdir/reward"
small=(--config.model.width=192 --config.model.depth=4 --config.model.heads=3 --config.model.kv_heads=3
  --config.model.mlp=768 --config.data.tokenizer.size=2048 --config.data.length=384)
chosen=lmjax.data.sources.chosen:ChosenDialogues
stage sft "configs/sft.py:files=$files" 300 "${small[@]}" \
  --config.data.source.kind="$chosen" --config.data.validation.kind="$chosen"
stage reward "configs/reward.py:start=$sft,files=$files" 120 --config.data.length=384
stage ppo "configs/ppo.py:start=$sft,reward=$reward,files=$files" 160 \
  --config.data.length=160 --config.data.prompt_tokens=112
stage dpo "configs/dpo.py:start=$sft,files=$files" 120 --config.data.length=384 --config.optim.peak_lr=1e-5

for name in sft ppo dpo; do
  echo "== an answer of $name"
  run "${lmjax[@]}" chat --workdir "$workdir/$name" --message "What is the opposite of hot?" --temperature 0
done
echo "The curves and evaluations are in $workdir/*/metrics.jsonl; policy_win_rate is judged by the reward model itself."
