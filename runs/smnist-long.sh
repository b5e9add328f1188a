#!/usr/bin/env bash
# FPTT with K = 28 for 14 epochs, 45 to 130 minutes on one core. FPTT_DATA: a folder with the folder mnist; else the hub.
set -euo pipefail
.venv/bin/fptt compare --recipe smnist-small --epochs 14 --methods fptt --seeds 1 --budgets epochs ${FPTT_DATA:+--data "$FPTT_DATA/mnist"} --out results/smnist-long
