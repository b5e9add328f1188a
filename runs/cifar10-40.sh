#!/usr/bin/env bash
# Sequential CIFAR-10 for 40 epochs on a GPU: FPTT and TBPTT with three seeds, BPTT with one. FPTT_DATA: a folder
# with the folder cifar10.
set -euo pipefail
TASKS=cifar10 bash runs/gpu.sh
TASKS=cifar10 METHODS="fptt tbptt" SEEDS="1 2" bash runs/gpu.sh
