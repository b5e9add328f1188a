#!/usr/bin/env bash
# Three methods, one seed, at equal epochs. FPTT_DATA: a folder with the folder mnist; else the hub.
set -euo pipefail
.venv/bin/fptt compare --recipe psmnist-small --seeds 1 --budgets epochs ${FPTT_DATA:+--data "$FPTT_DATA/mnist"} --out results/psmnist-small
