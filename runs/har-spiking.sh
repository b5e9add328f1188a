#!/usr/bin/env bash
# Windows of sensors, spiking neurons: three methods, three seeds, at equal epochs, 4 of the recipe's 30, and at equal
# updates, for which BPTT needs 64 epochs; the chunks of TBPTT and FPTT by the compiled engine. About 45 minutes of a core.
# FPTT_DATA: a folder with the folder har.
set -euo pipefail
.venv/bin/fptt compare --recipe har-spiking --epochs 4 --engine compiled --seeds 3 --budgets epochs,updates --data "$FPTT_DATA/har" --out results/har-spiking
