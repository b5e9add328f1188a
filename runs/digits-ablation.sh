#!/usr/bin/env bash
# What decides on the digits: K, strength, form, coupling, one at a time. About an hour.
set -euo pipefail
.venv/bin/fptt ablate --recipe digits --over num_chunks=2:4:8:16:32,alpha=0.01:0.1:0.5,form,coupling,num_duals=1:8 --seeds 3 --out results/digits-ablation
