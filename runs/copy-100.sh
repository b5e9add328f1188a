#!/usr/bin/env bash
# Three methods, three seeds, at equal epochs.
set -euo pipefail
.venv/bin/fptt compare --recipe copy-100 --seeds 3 --budgets epochs --threads 1 --out results/copy-100
