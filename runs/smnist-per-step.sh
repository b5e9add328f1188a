#!/usr/bin/env bash
# K = 784, an update at every pixel: FPTT and TBPTT, two seeds, forty minutes each of one core.
# FPTT_DATA: a folder with the folder mnist; else the hub.
set -euo pipefail
for method in fptt tbptt; do
  .venv/bin/fptt train --recipe smnist-per-step --method $method --seed 0 ${FPTT_DATA:+--data "$FPTT_DATA/mnist"} --out results/smnist-per-step/$method-seed-0
  .venv/bin/fptt train --recipe smnist-per-step --method $method --seed 1 ${FPTT_DATA:+--data "$FPTT_DATA/mnist"} --out results/smnist-per-step/$method-seed-1
done
