#!/usr/bin/env bash
# Three methods, one seed, at equal epochs. FPTT_DATA: a folder with the folder ptb; else the hub.
set -euo pipefail
.venv/bin/fptt compare --recipe ptb-300-small --seeds 1 --budgets epochs ${FPTT_DATA:+--data "$FPTT_DATA/ptb"} --out results/ptb-300-small
