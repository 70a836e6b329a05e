#!/usr/bin/env bash
# Makes the merged tags of both released data sets, flickr (1,386 raw tags, released T = 1,178) and nuswide
# (1,000 raw tags, released T = 928), from the Google News vectors: tag_processing.sh GPU.
# The GPU is not used; it is asked for so that all scripts are called alike.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

for dataset in flickr nuswide; do
    "$PYTHON" tag_processing.py "$dataset" datasets/GoogleNews-vectors-negative300.bin.gz "${1:-0}"
done
