#!/usr/bin/env bash
# K = 784, an update at every pixel at half of the recipe's rate: TBPTT, forty minutes of one core.
# FPTT_DATA: a folder with the folder mnist; else the hub.
set -euo pipefail
.venv/bin/fptt train --recipe smnist-per-step --method tbptt --lr 6.25e-6 ${FPTT_DATA:+--data "$FPTT_DATA/mnist"} --out results/smnist-per-step-half/tbptt-seed-0
