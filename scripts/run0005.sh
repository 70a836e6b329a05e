#!/usr/bin/env bash
# NUS-WIDE at 8 bits: 1500 steps of 256 images, then validation; run0005.sh GPU [options of train.py].
# The release's AQD MAP@5000: 0.717. By its log, training took 56.3 minutes and validation 38.0 on a GTX 1080 Ti.
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" nuswide 0.0003 1500 0.0001 1 0005 "${1:-0}" "${@:2}"
