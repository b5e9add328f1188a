#!/usr/bin/env bash
# MNIST row by row, spiking neurons with liquid time constants, K = 4: three methods, three seeds, at equal epochs and at
# equal updates, for which BPTT needs 40 epochs. About 70 minutes of a core. FPTT_DATA: a folder with the folder mnist; else
# the hub.
set -euo pipefail
.venv/bin/fptt compare --recipe smnist-rows-spiking --seeds 3 --budgets epochs,updates ${FPTT_DATA:+--data "$FPTT_DATA/mnist"} --out results/smnist-rows-spiking
