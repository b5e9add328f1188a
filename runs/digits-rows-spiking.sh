#!/usr/bin/env bash
# Digits row by row, spiking neurons with liquid time constants, K = T = 8: three methods, three seeds, at equal epochs and
# at equal updates. About ten minutes of a core.
set -euo pipefail
.venv/bin/fptt compare --recipe digits-rows-spiking --seeds 3 --budgets epochs,updates --out results/digits-rows-spiking
