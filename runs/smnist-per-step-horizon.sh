#!/usr/bin/env bash
# K = 784, an update at every pixel with a gradient through eight of them, and through one, at four times the recipe's
# rate: TBPTT, one epoch each, three quarters of an hour of one core. FPTT_DATA: a folder with the folder mnist; else the hub.
set -euo pipefail
.venv/bin/fptt train --recipe smnist-per-step --epochs 1 --lr 5e-5 --method tbptt --horizon 8 ${FPTT_DATA:+--data "$FPTT_DATA/mnist"} --out results/smnist-per-step-horizon/tbptt-h8-seed-0
.venv/bin/fptt train --recipe smnist-per-step --epochs 1 --lr 5e-5 --method tbptt --horizon 1 ${FPTT_DATA:+--data "$FPTT_DATA/mnist"} --out results/smnist-per-step-horizon/tbptt-h1-seed-0
