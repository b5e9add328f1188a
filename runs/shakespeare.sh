#!/usr/bin/env bash
# Characters of Tiny Shakespeare: three methods, one seed, at equal epochs. FPTT_DATA: a folder with the folder tiny_shakespeare.
set -euo pipefail
.venv/bin/fptt compare --recipe text --seeds 1 --budgets epochs --threads 1 --data "$FPTT_DATA/tiny_shakespeare" --out results/shakespeare
