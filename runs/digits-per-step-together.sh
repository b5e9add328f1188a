#!/usr/bin/env bash
# Digits, an update at every pixel, lanes together: FPTT beside TBPTT at the whole rate and at parts of it, three seeds,
# half of the epochs of the recipe. About half an hour of one core.
set -euo pipefail
.venv/bin/fptt compare --recipe digits-per-step --lanes together --epochs 100 --methods tbptt,fptt --controls rate=0.9,0.8,0.5 --seeds 3 --budgets epochs --out results/digits-per-step-together
