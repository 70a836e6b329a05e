#!/usr/bin/env bash
# Encode CIFAR-10's 54,000 database images with a checkpoint of GPQ and print mAP beside that of a random ranking:
# run_gpq_demo.sh CHECKPOINT [GPU] [options of gpq.demo].
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install requirements.txt

exec "$PYTHON" -m gpq.demo "$@"
