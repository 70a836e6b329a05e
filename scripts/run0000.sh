#!/usr/bin/env bash
# The whole pipeline on drawn photos, on a fresh machine: run0000.sh [GPU] [SEED] (default: GPU 0, seed 0).
# Installs the environment, draws and imports the data set `demo`, learns word vectors from its tags, trains
# from random weights at 16 bits and validates. README.md has the time it takes and the MAP to expect.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install

gpu=${1:-0} seed=${2:-0}
if [ ! -e datasets/demo-photos/photos.csv ]; then  # it is written last, once every photo is there
    "$PYTHON" prepare/demo.py datasets/demo-photos
fi
"$PYTHON" prepare/photos.py demo datasets/demo-photos/photos.csv --images datasets/demo-photos/images
"$PYTHON" tag_processing.py demo train "$gpu" --seed "$seed"
"$PYTHON" train.py demo 0.00003 150 0.0001 2 WSDQH 0000 "$gpu" --seed "$seed" \
    --backbone-init lsuv --dropout 0 --batch-size 64
"$PYTHON" validation.py demo "checkpoints/demo_WSDQH_nbits=16_adaMargin_gamma=1_lambda=0.0001_0000.npy" "$gpu" \
    --seed "$seed" --crops 1
