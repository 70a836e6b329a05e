#!/usr/bin/env bash
# Lint and tests, for people and for CI: test.sh [options of pytest], such as --slow or -k metrics.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install requirements-dev.txt

"$PYTHON" -m ruff check .
"$PYTHON" -m pytest -q -n 2 --dist loadfile "$@"
