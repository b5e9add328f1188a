#!/usr/bin/env bash
# Two processes: gradients added up at every update, or weights, averages and duals averaged every k updates; what is sent.
set -euo pipefail
.venv/bin/fptt ablate --recipe digits --devices 2 --accelerator cpu --over sync_every=1:4:16 --seeds 2 --out results/digits-sync
.venv/bin/python benchmarks/messages.py
