# Sourced by the other scripts: goes to the project's folder and sets PYTHON to its virtual environment's.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=.venv/bin/python
[ -x "$PYTHON" ] || PYTHON=python3

# install FILE...: make the virtual environment if there is none, and install what the requirements FILEs name
# and the project itself, in place. A second call does nothing until one of these files changes, so it needs no network.
install() {
    local IFS=+ file wanted=()
    local stamp=".venv/installed-$*"
    for file; do wanted+=(-r "$file"); done
    if [ ! -e "$stamp" ] || [ -n "$(find . -maxdepth 1 \( -name 'requirements*.txt' -o -name pyproject.toml \) -newer "$stamp")" ]; then
        [ -x .venv/bin/python ] || "$(base_python)" -m venv .venv
        echo "installing packages; the first time this takes minutes"
        .venv/bin/python -m pip install --quiet --disable-pip-version-check "${wanted[@]}" -e .
        touch "$stamp"
    fi
    PYTHON=.venv/bin/python
}

# The first of the Python versions that the tests were run with, in the order of preference.
base_python() {
    local name
    for name in python3.11 python3.12 python3.13; do
        if "$name" -c "" 2> /dev/null; then echo "$name"; return; fi
    done
    echo "error: Python 3.11, 3.12 or 3.13 is needed, and none of them is there" >&2
    exit 2
}
