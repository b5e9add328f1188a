#!/usr/bin/env bash
# FPTT with K = 28 for six epochs, about an hour on one core. FPTT_DATA: a folder with the folder mnist; else the hub.
set -euo pipefail
.venv/bin/fptt train --recipe psmnist-small --epochs 6 ${FPTT_DATA:+--data "$FPTT_DATA/mnist"} --out results/psmnist-long/fptt-seed-0
