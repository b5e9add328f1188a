#!/usr/bin/env bash
# Words with fifteen chunks, the best of the replications, with and without the regularizer, an hour a run on one core;
# BPTT with one seed, an hour and 10 GiB of memory.
# FPTT_DATA: a folder with the folder ptb; else the hub.
set -euo pipefail
# glibc keeps freed memory: fetching the scores of 10,000 words anew for every chunk takes two fifths of the time
export MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=4000000000
.venv/bin/fptt train --recipe ptb-300 --method bptt --num-chunks 15 --epochs 24 --precision bf16-mixed --threads 1 ${FPTT_DATA:+--data "$FPTT_DATA/ptb"} --out results/ptb-300-15/equal-epochs/bptt-seed-0
.venv/bin/fptt compare --recipe ptb-300 --num-chunks 15 --epochs 24 --precision bf16-mixed --threads 1 --seeds 3 --methods tbptt,fptt --budgets epochs ${FPTT_DATA:+--data "$FPTT_DATA/ptb"} --out results/ptb-300-15
