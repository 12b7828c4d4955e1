#!/usr/bin/env bash
# Builds the site of docs/ into build/site/html, in the environment of quickstart.sh: needs a network
# for installing alone. The tutorials run when they, the package or jax changed. `--serve` then serves
# the site on http://127.0.0.1:8000, `--serve PORT` elsewhere; `--no-tutorials` runs none of them.
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
install_package "[docs]"
python docs/build_site.py "$@"
