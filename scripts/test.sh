#!/usr/bin/env bash
# Lint, types and the first tier of tests: some minutes on two cores, in the environment of
# quickstart.sh. `--all` adds networks of full size, runs of several processes and distribution,
# some 20 minutes. Other arguments go to pytest: `scripts/test.sh tests/models -x`,
# `scripts/test.sh -m slow`.
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
install_package "[dev]"

say "Lint"
ruff check .
ruff format --check .

say "Types"
mypy

# A file to a process: its tests share runs. In their order: few tests may take the longest.
options=(-n 2 --dist loadfile --no-loadscope-reorder)
for option in "$@"; do
  if [[ "$option" == --all ]]; then options+=(-m "not slow"); else options+=("$option"); fi
done

say "Tests"
pytest "${options[@]}"
