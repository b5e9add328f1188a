#!/usr/bin/env bash
# The adding task at T = 500: three methods, three seeds, at equal epochs.
set -euo pipefail
.venv/bin/fptt compare --recipe adding-500 --seeds 3 --budgets epochs --threads 1 --out results/adding-500
