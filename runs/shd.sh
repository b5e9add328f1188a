#!/usr/bin/env bash
# Spiking Heidelberg Digits: three methods, three seeds, at equal epochs and at equal updates. FPTT_DATA: a folder with the
# folder shd, which has shd_train.h5 and shd_test.h5. Not run yet.
set -euo pipefail
.venv/bin/fptt compare --recipe shd --seeds 3 --budgets epochs,updates --data "$FPTT_DATA/shd" --out results/shd
