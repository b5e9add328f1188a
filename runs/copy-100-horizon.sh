#!/usr/bin/env bash
# Copying over 100 steps, K = 10, with a gradient through h chunks: which h learns it. Three to five hours of a core.
set -euo pipefail
setting=(--recipe copy-100 --lr 4e-3 --forget-bias 0 --chrono-init 120 --precision bf16-mixed --threads 1 --seed 0)
.venv/bin/fptt train "${setting[@]}" --epochs 100 --method bptt --out results/copy-100-horizon/bptt-seed-0
.venv/bin/fptt train "${setting[@]}" --epochs 200 --method bptt --out results/copy-100-horizon/bptt-200-seed-0
for h in 10 1 9 5 2 7 3; do
  .venv/bin/fptt train "${setting[@]}" --epochs 100 --method tbptt --horizon $h --out results/copy-100-horizon/tbptt-h$h-seed-0
done
for h in 10 1; do
  .venv/bin/fptt train "${setting[@]}" --epochs 100 --method fptt --horizon $h --out results/copy-100-horizon/fptt-h$h-seed-0
done
