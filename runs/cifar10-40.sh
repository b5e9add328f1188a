#!/usr/bin/env bash
# Sequential CIFAR-10 for 40 epochs on a GPU: three methods, one seed. FPTT_DATA: a folder with the folder cifar10.
set -euo pipefail
TASKS=cifar10 bash runs/gpu.sh
