#!/usr/bin/env bash
# NUS-WIDE at 16 bits: 1500 steps of 256 images, then validation; run0006.sh GPU [options of train.py].
# The release's AQD MAP@5000: 0.727. By its log, training took 53.3 minutes and validation 17.7 on a GTX 1080 Ti.
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" nuswide 0.0003 1500 0.0001 2 0006 "${1:-0}" "${@:2}"
