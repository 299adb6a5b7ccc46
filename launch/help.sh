# Prints the comment at the start of a launcher for --help; sourced by all of them with their arguments.
# shellcheck shell=bash
for argument in "$@"; do
  case "$argument" in
    --) break ;;
    -h | --help)
      sed -n '2,/^[^#]/s/^# //p' "$0"
      exit 0
      ;;
  esac
done
