#!/usr/bin/env bash
# Words with fifteen chunks, with and without the regularizer, for 100 epochs as published, ended after six without gain:
# 34 to 42, and 80 minutes of a core.
# FPTT_DATA: a folder with the folder ptb; else the hub.
set -euo pipefail
# glibc keeps freed memory: fetching the scores of 10,000 words anew for every chunk takes two fifths of the time
export MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=4000000000
.venv/bin/fptt compare --recipe ptb-300 --num-chunks 15 --early-stopping 6 --precision bf16-mixed --threads 1 --seeds 3 --methods tbptt,fptt --budgets epochs ${FPTT_DATA:+--data "$FPTT_DATA/ptb"} --out results/ptb-300
