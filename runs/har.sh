#!/usr/bin/env bash
# Three methods, two seeds, at equal epochs. FPTT_DATA: a folder with the folder har.
set -euo pipefail
.venv/bin/fptt compare --recipe har --seeds 2 --budgets epochs --data "$FPTT_DATA/har" --out results/har
