#!/usr/bin/env bash
# Three methods, one seed, at equal epochs. FPTT_DATA: a folder with the folder ptb_char.
set -euo pipefail
.venv/bin/fptt compare --recipe ptb-char-small --seeds 1 --budgets epochs --data "$FPTT_DATA/ptb_char" --out results/ptb-char-small
