#!/usr/bin/env bash
# Three methods with K = 28 for 14 epochs, 30 to 130 minutes each on one core. FPTT_DATA: a folder with the folder mnist; else the hub.
set -euo pipefail
.venv/bin/fptt compare --recipe smnist-small --epochs 14 --seeds 1 --budgets epochs ${FPTT_DATA:+--data "$FPTT_DATA/mnist"} --out results/smnist-long
