#!/usr/bin/env bash
# GPQ on CIFAR-10 at 48 bits, everything: install, CIFAR-10, 300 epochs of 10 steps of 500 + 500 images, mAP, figures;
# run_gpq.sh [GPU] [options of gpq.train]. A second run continues from the newest checkpoint. Training starts from Xavier
# initialisation, so it does not reach the paper's figures, which start from an ImageNet-trained network. Meant for a
# GPU: on 2 CPU cores a step takes half a minute.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install search

gpu=${1:-0} checkpoint=checkpoints/gpq/cifar10_gpq_nbits=48_seed=0
resume=$(compgen -G "$checkpoint/step_*" > /dev/null && echo --resume || true)
[ -e cifar10/test_batch ] || "$PYTHON" prepare/cifar10.py --download
"$PYTHON" -m gpq.train "$gpu" $resume "${@:2}"
"$PYTHON" -m gpq.demo "$checkpoint" "$gpu"
