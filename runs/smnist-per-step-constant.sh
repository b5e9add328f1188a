#!/usr/bin/env bash
# K = 784 at a constant rate: FPTT for 45 minutes of one core, TBPTT for 12; the epochs that both have can be compared.
# FPTT_DATA: a folder with the folder mnist; else the hub.
set -euo pipefail
train=(.venv/bin/fptt train --recipe smnist-per-step --schedule constant --lr 5e-5 --epochs 40 ${FPTT_DATA:+--data "$FPTT_DATA/mnist"})
"${train[@]}" --max-seconds 2700 --out results/smnist-per-step-constant/fptt-seed-0
"${train[@]}" --method tbptt --max-seconds 720 --out results/smnist-per-step-constant/tbptt-seed-0
