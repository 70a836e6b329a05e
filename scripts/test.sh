#!/usr/bin/env bash
# Lint and tests, for people and for CI: test.sh [options of pytest], such as --slow or -k metrics.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install dev

"$PYTHON" -m ruff check .
unset PYTHONDONTWRITEBYTECODE  # otherwise every program that a test starts would be compiled again
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 TF_NUM_INTRAOP_THREADS=1  # two workers, each on a core of its own
"$PYTHON" -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder "$@"
