#!/usr/bin/env bash
# What half the bits cost and save: bfloat16 beside float32, on the digits and on the adding task at T = 200.
set -euo pipefail
.venv/bin/fptt ablate --recipe digits --over precision=32-true:bf16-mixed --seeds 2 --out results/precision-digits
.venv/bin/fptt ablate --recipe adding-200 --over precision=32-true:bf16-mixed --seeds 1 --threads 1 --out results/precision-adding-200
