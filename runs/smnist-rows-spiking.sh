#!/usr/bin/env bash
# MNIST row by row, spiking neurons, K = 4, one seed of FPTT: about 10 minutes of a free core. FPTT_DATA: a folder with the
# folder mnist; else the hub. `fptt compare --recipe smnist-rows-spiking --seeds 3 --budgets epochs,updates` has the others.
set -euo pipefail
.venv/bin/fptt train --recipe smnist-rows-spiking --method fptt --seed 0 ${FPTT_DATA:+--data "$FPTT_DATA/mnist"} --out results/smnist-rows-spiking/equal-epochs/fptt-seed-0
