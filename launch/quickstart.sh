#!/usr/bin/env bash
# A GPT trained on the documentation of your Python, and samples from it: bash launch/quickstart.sh
# Honours PYTHON (which Python makes .venv) and WORKDIR (the run folder).
source "$(dirname "${BASH_SOURCE[0]}")/install.sh" ""
workdir="${WORKDIR:-runs/quickstart}"

"$python" -m lmjax train --config configs/quickstart.py --workdir "$workdir" "$@"
echo
"$python" -m lmjax generate --workdir "$workdir" --prompt "Return the" --prompt "The following" \
  --max_new_tokens 60 --temperature 0.8 --top_p 0.95
cat <<EOF

The run folder is $workdir: config.json, tokenizer/, checkpoints/, metrics.jsonl, loss.png, summary.json.
Try next:
  $venv/bin/lmjax generate --workdir $workdir --prompt "Raised when"
  $venv/bin/lmjax train --config configs/text.py:files=my/*.txt --workdir runs/text
  $venv/bin/lmjax train --config configs/gpt2.py:size=124m,debug --workdir runs/debug
EOF
