#!/usr/bin/env bash
# The same with SGD and momentum instead of Adam: strength, form, coupling, duals. About an hour.
set -euo pipefail
.venv/bin/fptt ablate --recipe digits --optimizer sgd --momentum 0.9 --lr 0.1 --over alpha=0.01:0.1:0.5,form,coupling,num_duals=1:8 --seeds 3 --out results/digits-sgd-ablation
