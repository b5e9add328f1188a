#!/usr/bin/env bash
# Digits, an update at every pixel: FPTT and TBPTT, compiled, three seeds, and BPTT at equal epochs. About 20 minutes.
set -euo pipefail
.venv/bin/fptt compare --recipe digits-per-step --seeds 3 --budgets epochs --out results/digits-per-step
