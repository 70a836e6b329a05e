# Sourced by the other scripts: goes to the project's folder and sets PYTHON to its virtual environment's.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=.venv/bin/python
[ -x "$PYTHON" ] || PYTHON=python3

# install [EXTRAS]: make the virtual environment if there is none, and install the project in place with these extras of
# pyproject.toml, such as search,serve. A second call does nothing until the requirements change, so it needs no network.
install() {
    local stamp=".venv/installed-${1:-base}"
    if [ ! -e "$stamp" ] || [ requirements.txt -nt "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
        [ -x .venv/bin/python ] || "$(base_python)" -m venv .venv
        echo "installing packages; the first time this takes minutes"
        .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".${1:+[$1]}"
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
