#!/usr/bin/env bash
# usage: scripts/gpu_evidence.sh [--stage NAME|next] [--list] [--output DIR] [--minutes N]
#                                [--camvid DIR] [--rehearse]
# Measures this project on one H100 or H200: parity, operators, steps, inference, flags, a profile,
# training. Takes $PYTHON, the active environment's Python or python3; installs nothing and needs no
# network. Stages, results and options: scripts/gpu_evidence.sh --help
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}}"
python="${python:-python3}"
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
  echo "error: $python: it is missing or older than Python 3.11 - set PYTHON to one that holds jax" \
    "and torch" >&2
  exit 2
fi
PYTHONPATH="$root:$root/scripts${PYTHONPATH:+:$PYTHONPATH}" exec "$python" -m evidence "$@"
