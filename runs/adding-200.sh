#!/usr/bin/env bash
# The adding task at T = 200, 1,500 batches of 128, Adam 1e-3 (cosine), K = 10: three methods, three seeds. 40 minutes.
set -euo pipefail
for method in fptt tbptt bptt; do
  for seed in 0 1 2; do
    out="out/adding-200/$method-seed-$seed"
    if ! grep -qs '"status": "finished"' "$out/summary.json"; then
      .venv/bin/fptt train --task adding --length 200 --method "$method" --seed "$seed" --threads 1 --out "$out" --overwrite
    fi
  done
done
