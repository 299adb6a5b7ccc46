#!/usr/bin/env bash
# Runs ruff, mypy and the fast tests: bash launch/test.sh; --all adds the slow tests. Other arguments are passed to
# pytest. Environment: PYTHON (creates .venv).
source "$(dirname "${BASH_SOURCE[0]}")/help.sh"
source "$(dirname "${BASH_SOURCE[0]}")/install.sh" "[test]"

"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy
"$python" -m pytest tests -n 2 --dist worksteal --durations=10 "$@"
