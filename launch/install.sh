# Creates .venv with lmjax and the extras in $1, and sets $python; sourced by the other scripts.
# shellcheck shell=bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stop() {
  echo "lmjax: $1" >&2
  exit 2
}

base="${PYTHON:-python3}"
venv="${LMJAX_VENV:-.venv}"
command -v "$base" >/dev/null || stop "$base is not on the PATH; set PYTHON to Python 3.11 or newer"
"$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
  || stop "$("$base" --version) is too old: lmjax needs Python 3.11 or newer; set PYTHON, for example PYTHON=python3.12"
if [ ! -x "$venv/bin/python" ]; then
  "$base" -m venv "$venv" || stop "cannot create $venv: install the venv module of $base (Debian: python3-venv)"
fi
python="$venv/bin/python"
echo "installing lmjax into $venv"
log="$("$python" -m pip install --quiet --disable-pip-version-check -e ".${1:-}" 2>&1)" \
  || stop "pip install failed: $(echo "$log" | grep -i error | tail -n 1)"
