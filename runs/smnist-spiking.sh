#!/usr/bin/env bash
# S-MNIST pixel by pixel, spiking neurons, an update at every pixel, on a GPU: FPTT and TBPTT, one seed. Not run yet.
set -euo pipefail
for method in fptt tbptt; do
  .venv/bin/fptt train --recipe smnist-spiking --accelerator cuda --method "$method" --seed 0 ${FPTT_DATA:+--data "$FPTT_DATA/mnist"} --out "results/smnist-spiking/equal-epochs/$method-seed-0"
done
