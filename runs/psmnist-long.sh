#!/usr/bin/env bash
# Three methods with K = 28 for six epochs, an hour each on one core at most. FPTT_DATA: a folder with the folder mnist; else the hub.
set -euo pipefail
.venv/bin/fptt compare --recipe psmnist-small --epochs 6 --seeds 1 --budgets epochs ${FPTT_DATA:+--data "$FPTT_DATA/mnist"} --out results/psmnist-long
