#!/usr/bin/env bash
# K = 784, an update at every pixel, half an hour of one core. FPTT_DATA: a folder with the folder mnist; else the hub.
set -euo pipefail
.venv/bin/fptt train --recipe smnist-per-step ${FPTT_DATA:+--data "$FPTT_DATA/mnist"} --out results/smnist-per-step/fptt-seed-0
