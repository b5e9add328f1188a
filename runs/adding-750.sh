#!/usr/bin/env bash
# The adding task at T = 750: three methods, three seeds, at equal epochs.
set -euo pipefail
.venv/bin/fptt compare --recipe adding-1000 --length 750 --seeds 3 --budgets epochs --threads 1 --out results/adding-750
