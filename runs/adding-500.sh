#!/usr/bin/env bash
# The adding task at T = 500: three methods, three seeds, at equal epochs; and BPTT with the losses of the chunks and as many
# updates, by smaller batches.
set -euo pipefail
.venv/bin/fptt compare --recipe adding-500 --seeds 3 --budgets epochs --controls bptt-small-batches --threads 1 --out results/adding-500
