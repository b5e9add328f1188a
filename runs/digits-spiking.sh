#!/usr/bin/env bash
# Digits pixel by pixel, spiking neurons with liquid time constants, K = 8: three methods, three seeds, at equal epochs and
# at equal updates, for which BPTT needs 320 epochs. About 20 minutes of a core.
set -euo pipefail
.venv/bin/fptt compare --recipe digits-spiking --seeds 3 --budgets epochs,updates --out results/digits-spiking
