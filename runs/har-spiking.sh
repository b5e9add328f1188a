#!/usr/bin/env bash
# Windows of sensors, spiking neurons: three methods, three seeds, at equal epochs and at equal updates. FPTT_DATA: a folder
# with the folder har.
set -euo pipefail
.venv/bin/fptt compare --recipe har-spiking --seeds 3 --budgets epochs,updates --data "$FPTT_DATA/har" --out results/har-spiking
