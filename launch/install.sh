# Makes .venv with lmjax and the extras named in $1; sourced by the other scripts, which then have $python.
# shellcheck shell=bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stop() {
  echo "lmjax: $1" >&2
  exit 2
}

base="${PYTHON:-python3}"
venv="${LMJAX_VENV:-.venv}"
command -v "$base" >/dev/null || stop "no $base on the PATH; set PYTHON to a Python of 3.11 or newer"
"$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
  || stop "$("$base" --version) is too old: lmjax needs 3.11 or newer; set PYTHON=python3.12, say"
if [ ! -x "$venv/bin/python" ]; then
  "$base" -m venv "$venv" || stop "cannot make $venv: is the venv module of $base installed (Debian: python3-venv)?"
fi
python="$venv/bin/python"
echo "installing lmjax into $venv"
log="$("$python" -m pip install --quiet --disable-pip-version-check -e ".${1:-}" 2>&1)" \
  || stop "pip could not install: $(echo "$log" | grep -i error | tail -n 1)"
