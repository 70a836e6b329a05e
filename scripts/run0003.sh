#!/usr/bin/env bash
# MIRFLICKR-25K at 24 bits: 800 steps of 256 images, then validation; run0003.sh GPU [options of train.py].
# The release's AQD MAP@5000: 0.765. Its logs imply 28 to 43 minutes of training and 4 of validation on a GTX 1080 Ti.
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" flickr 0.0003 800 0.0001 3 0003 "${1:-0}" "${@:2}"
