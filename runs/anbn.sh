#!/usr/bin/env bash
# Three methods, three seeds, at equal epochs.
set -euo pipefail
.venv/bin/fptt compare --recipe anbn --seeds 3 --budgets epochs --threads 1 --out results/anbn
