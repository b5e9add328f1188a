#!/usr/bin/env bash
# K = 784, an update at every pixel at half of the recipe's rate, which is the control of the penalty: FPTT and TBPTT, forty
# minutes each of one core, and BPTT, twenty. FPTT_DATA: a folder with the folder mnist; else the hub.
set -euo pipefail
for method in fptt tbptt bptt; do
  .venv/bin/fptt train --recipe smnist-per-step --method $method --lr 2.5e-5 ${FPTT_DATA:+--data "$FPTT_DATA/mnist"} --out results/smnist-per-step-half/$method-seed-0
done
