#!/usr/bin/env bash
# Installs, then draws a small data set, trains on it, evaluates and predicts: minutes on a CPU.
# Everything it writes is in runs/demo, and in .venv unless a virtual environment is active.
# Arguments go to `deeplab demo`.
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
install_package ""
deeplab demo "$@"
say "Done"
echo "First in every new shell: source $VIRTUAL_ENV/bin/activate"
