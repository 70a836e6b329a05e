#!/usr/bin/env bash
# GPQ in minutes: a tenth of CIFAR-10's images, drawn by the seed, 100 steps of 50 + 50 images from Xavier initialisation,
# then mAP next to that of a random ranking, and figures; run_gpq_demo.sh [GPU]. gpq/README.md has the time and the mAP to
# expect.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install search

gpu=${1:-0}
small=(--images 6000 --labelled-per-class 100 --batch-size 50 --batch-size-unlabelled 50 --epochs 10
       --checkpoints checkpoints/gpq_demo --logs logs/gpq_demo)
checkpoint=checkpoints/gpq_demo/cifar10_gpq_nbits=48_seed=0
resume=$(compgen -G "$checkpoint/step_*" > /dev/null && echo --resume || true)
[ -e cifar10/test_batch ] || "$PYTHON" prepare/cifar10.py --download
"$PYTHON" -m gpq.train "$gpu" $resume "${small[@]}"
"$PYTHON" -m gpq.demo "$checkpoint" "$gpu" "${small[@]}"
