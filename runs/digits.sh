#!/usr/bin/env bash
# Digits, K = 8: three methods, three seeds, at equal epochs. About 6 minutes of a core; --budgets epochs,updates,seconds adds
# the runs at equal updates and at equal time, 25 minutes more.
set -euo pipefail
.venv/bin/fptt compare --recipe digits --seeds 3 --budgets epochs --out results/digits
