#!/usr/bin/env bash
# K = 784: FPTT for 45 minutes of one core, TBPTT for 12; the epochs that both have can be compared. FPTT_DATA: a folder with the folder mnist; else the hub.
set -euo pipefail
train=(.venv/bin/fptt train --recipe smnist-per-step ${FPTT_DATA:+--data "$FPTT_DATA/mnist"})
"${train[@]}" --max-seconds 2700 --out results/smnist-per-step/fptt-seed-0
"${train[@]}" --method tbptt --max-seconds 720 --out results/smnist-per-step/tbptt-seed-0
