#!/usr/bin/env bash
# Lint, types and tests, in the environment of quickstart.sh. Arguments go to pytest:
# `scripts/test.sh -m slow`, `scripts/test.sh tests/models -x`.
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
install_package "[dev]"

say "Lint"
ruff check .
ruff format --check .

say "Types"
mypy

say "Tests"
pytest -n 2 --dist loadfile "$@" # a file to a process: its tests share runs
