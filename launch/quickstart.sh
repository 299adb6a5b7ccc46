#!/usr/bin/env bash
# Trains a small GPT on the documentation of the installed Python and samples from it: bash launch/quickstart.sh
# Environment: PYTHON (creates .venv), WORKDIR (the run folder).
source "$(dirname "${BASH_SOURCE[0]}")/help.sh"
source "$(dirname "${BASH_SOURCE[0]}")/install.sh" ""
workdir="${WORKDIR:-runs/quickstart}"

"$python" -m lmjax train --config configs/quickstart.py --workdir "$workdir" "$@"
echo
"$python" -m lmjax generate --workdir "$workdir" --prompt "Return the" --prompt "The following" \
  --max_new_tokens 60 --temperature 0.8 --top_p 0.95
cat <<EOF

The run folder is $workdir: config.json, tokenizer/, checkpoints/, metrics.jsonl, loss.png, summary.json.
Next steps:
  $venv/bin/lmjax generate --workdir $workdir --prompt "Raised when"
  $venv/bin/lmjax train --config configs/text.py:files='my/*.txt' --workdir runs/text
  $venv/bin/lmjax train --config configs/gpt2.py:size=124m,debug --workdir runs/debug
EOF
