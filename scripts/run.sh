#!/usr/bin/env bash
# Train and validate: run.sh DATASET LR ITERATIONS LAMBDA SUBSPACE_NUM NOTES GPU [options of train.py].
# What run0001.sh to run0008.sh share; it runs from any folder.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

training=("${@:1:5}" WSDQH "${@:6}")
checkpoint=$("$PYTHON" train.py "${training[@]}" --print-path)
"$PYTHON" train.py "${training[@]}"
"$PYTHON" validation.py "$1" "$checkpoint" "$7" --root "$(dirname "$(dirname "$checkpoint")")"
