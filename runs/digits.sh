#!/usr/bin/env bash
# Digits, K = 8: three methods, five seeds, at equal epochs. About 8 minutes of a core; --budgets epochs,updates,seconds adds
# the runs at equal updates and at equal time, half an hour more.
set -euo pipefail
.venv/bin/fptt compare --recipe digits --seeds 5 --budgets epochs --out results/digits
