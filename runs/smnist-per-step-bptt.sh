#!/usr/bin/env bash
# The model of an update at every pixel, K = 784, by BPTT: at the rate 1e-3, which long sequences are trained with, and at
# twice the rate of the recipe. Twenty minutes each of one core. FPTT_DATA: a folder with the folder mnist; else the hub.
set -euo pipefail
.venv/bin/fptt train --recipe smnist-per-step --method bptt --lr 1e-3 ${FPTT_DATA:+--data "$FPTT_DATA/mnist"} --out results/smnist-per-step-bptt/rate-1e-3-seed-0
.venv/bin/fptt train --recipe smnist-per-step --method bptt --lr 2.5e-5 ${FPTT_DATA:+--data "$FPTT_DATA/mnist"} --out results/smnist-per-step-bptt/rate-2.5e-5-seed-0
