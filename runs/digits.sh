#!/usr/bin/env bash
# Digits, K = 8: three methods, three seeds, at equal epochs, updates and time. About 30 minutes.
set -euo pipefail
.venv/bin/fptt compare --recipe digits --seeds 3 --out results/digits
