#!/usr/bin/env bash
# Train and validate: run.sh DATASET LR ITERATIONS LAMBDA SUBSPACE_NUM NOTES GPU [options of train.py].
# What run0001.sh to run0008.sh share; it runs from any folder.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

dataset=$1 lr=$2 iterations=$3 lambda=$4 codebooks=$5 notes=$6 gpu=$7
experiment="${dataset}_WSDQH_nbits=$((8 * codebooks))_adaMargin_gamma=1_lambda=${lambda}_${notes}"
"$PYTHON" train.py "$dataset" "$lr" "$iterations" "$lambda" "$codebooks" WSDQH "$notes" "$gpu" "${@:8}"
"$PYTHON" validation.py "$dataset" "checkpoints/$experiment.npy" "$gpu"
