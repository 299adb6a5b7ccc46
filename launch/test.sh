#!/usr/bin/env bash
# Ruff, mypy and the fast tests: bash launch/test.sh; with --all the slow ones too. Further arguments go to pytest.
# Honours PYTHON (which Python makes .venv).
source "$(dirname "${BASH_SOURCE[0]}")/install.sh" "[test]"

"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy
"$python" -m pytest tests -n 2 --dist worksteal --durations=10 "$@"
