# Sourced by quickstart.sh and test.sh: enters the checkout and a virtual environment, which is the
# active one or else .venv in the checkout, made with $PYTHON or python3.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\n== %s (%d s)\n' "$1" "$SECONDS"; }

if [[ -z "${VIRTUAL_ENV:-}" ]]; then
  VIRTUAL_ENV="$PWD/.venv"
  if [[ ! -x "$VIRTUAL_ENV/bin/python" || ! -x "$VIRTUAL_ENV/bin/pip" ]]; then
    say "Making the virtual environment .venv"
    "${PYTHON:-python3}" -m venv "$VIRTUAL_ENV"
  fi
fi
export VIRTUAL_ENV PATH="$VIRTUAL_ENV/bin:$PATH"

if ! "$VIRTUAL_ENV/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "error: $VIRTUAL_ENV: its Python is missing or older than 3.11 - remove this environment" \
    "and repeat with PYTHON=python3.11 (or newer) set" >&2
  exit 2
fi

# Installs this checkout with the extras given, such as "[dev]", unless that was done before. The
# command is $INSTALL or else pip, such as INSTALL="uv pip install --resolution lowest-direct".
install_package() {
  local stamp="$VIRTUAL_ENV/.deeplab_jax$1"
  local state
  state="$(echo "$PWD" && cat pyproject.toml)"
  if [[ ! -f "$stamp" || "$(<"$stamp")" != "$state" ]]; then
    say "Installing deeplab_jax$1 into $VIRTUAL_ENV: about 1 GB, some minutes"
    ${INSTALL:-python -m pip install -qq --disable-pip-version-check} --editable ".$1"
    echo "$state" >"$stamp"
  fi
}
