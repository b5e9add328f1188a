#!/usr/bin/env bash
# Windows of sensors, spiking neurons: three methods, three seeds, at equal epochs, 4 of the recipe's 30, the chunks of TBPTT
# and FPTT by the compiled engine. About ten minutes of a core; as many updates of BPTT as FPTT makes, 16 times its epochs,
# would take an hour more. FPTT_DATA: a folder with the folder har.
set -euo pipefail
.venv/bin/fptt compare --recipe har-spiking --epochs 4 --engine compiled --seeds 3 --budgets epochs --data "$FPTT_DATA/har" --out results/har-spiking
