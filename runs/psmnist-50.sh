#!/usr/bin/env bash
# Permuted S-MNIST for 50 epochs on a GPU: FPTT and TBPTT with three seeds, BPTT with one; FPTT and TBPTT made their last
# epochs on a processor. FPTT_DATA: a folder with the folder mnist.
set -euo pipefail
TASKS=psmnist bash runs/gpu.sh
TASKS=psmnist METHODS="fptt tbptt" SEEDS="1 2" bash runs/gpu.sh
