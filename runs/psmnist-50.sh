#!/usr/bin/env bash
# Permuted S-MNIST for 50 epochs on a GPU: three methods, one seed; FPTT and TBPTT made their last epochs on a processor.
# FPTT_DATA: a folder with the folder mnist.
set -euo pipefail
TASKS=psmnist bash runs/gpu.sh
