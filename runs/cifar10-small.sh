#!/usr/bin/env bash
# Three methods, one seed, at equal epochs. FPTT_DATA: a folder with the folder cifar10; else the hub.
set -euo pipefail
.venv/bin/fptt compare --recipe cifar10-small --seeds 1 --budgets epochs ${FPTT_DATA:+--data "$FPTT_DATA/cifar10"} --out results/cifar10-small
