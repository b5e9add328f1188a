#!/usr/bin/env bash
# With and without the regularizer for 28 epochs, in half precision, half an hour to an hour each on one core. FPTT_DATA: a folder with the folder ptb; else the hub.
set -euo pipefail
.venv/bin/fptt compare --recipe ptb-300-small --epochs 28 --precision bf16-mixed --seeds 1 --methods tbptt,fptt --budgets epochs ${FPTT_DATA:+--data "$FPTT_DATA/ptb"} --out results/ptb-300-long
