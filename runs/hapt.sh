#!/usr/bin/env bash
# Three methods, two seeds, at equal epochs. FPTT_DATA: a folder with the folder hapt_stream.
set -euo pipefail
.venv/bin/fptt compare --recipe hapt --seeds 2 --budgets epochs --data "$FPTT_DATA/hapt_stream" --out results/hapt
