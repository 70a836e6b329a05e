# Sourced by the other scripts: goes to the project's folder and sets PYTHON to its virtual environment's.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=.venv/bin/python
[ -x "$PYTHON" ] || PYTHON=python3

# install FILE: make the virtual environment if there is none, and install what the requirements FILE names
# and the project itself, in place. A second call does nothing until one of these files changes, so it needs no network.
install() {
    local base=python3.11 stamp=".venv/installed-$1"
    if [ ! -e "$stamp" ] || [ -n "$(find . -maxdepth 1 \( -name 'requirements*.txt' -o -name pyproject.toml \) -newer "$stamp")" ]; then
        command -v "$base" > /dev/null || { echo "error: Python 3.11 is needed, and there is no $base" >&2; exit 2; }
        "$base" -m venv .venv
        .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$1" -e .
        touch "$stamp"
    fi
    PYTHON=.venv/bin/python
}
