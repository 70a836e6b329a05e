#!/usr/bin/env bash
# GPQ on CIFAR-10 at 48 bits: 300 epochs of 10 steps of 500 + 500 images, then mAP; run_gpq.sh [GPU].
# CIFAR-10's python-format batches lie in cifar10/. It starts from Xavier, so the paper's figures, which start from
# an ImageNet-trained network, are not to be expected. Meant for a GPU: on 2 CPU cores a step takes half a minute.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install requirements.txt

"$PYTHON" -m gpq.train "${1:-0}"
"$PYTHON" -m gpq.demo checkpoints/gpq/cifar10_gpq_nbits=48_seed=0 "${1:-0}"
