#!/usr/bin/env bash
# The ablation behind FPTT's defaults, docs/log.md: forms, couplings, strengths, K, optimizers. About an hour.
set -euo pipefail
.venv/bin/python benchmarks/ablation.py out/digits-ablation
