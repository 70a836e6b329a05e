#!/usr/bin/env bash
# NUS-WIDE at 24 bits: 1500 steps of 256 images, then validation; run0007.sh GPU [options of train.py].
# The release's AQD MAP@5000: 0.730. By its log, training took 52.8 minutes and validation 18.6 on a GTX 1080 Ti.
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" nuswide 0.0003 1500 0.0001 3 0007 "${1:-0}" "${@:2}"
