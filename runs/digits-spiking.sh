#!/usr/bin/env bash
# Digits pixel by pixel, spiking neurons with liquid time constants, K = 8: three methods, three seeds, at equal epochs.
# About ten minutes of a core. With --budgets epochs,updates also BPTT at as many updates as FPTT, 320 epochs: 25 minutes more.
set -euo pipefail
.venv/bin/fptt compare --recipe digits-spiking --seeds 3 --budgets epochs --out results/digits-spiking
