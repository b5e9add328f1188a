#!/usr/bin/env bash
# Copying over 100 steps, K = 10, with a gradient through h chunks: which h learns it. Five hours of a core.
set -euo pipefail
.venv/bin/fptt train --recipe copy-100 --lr 4e-3 --forget-bias 0 --chrono-init 120 --precision bf16-mixed --threads 1 --epochs 100 --method bptt --out results/copy-100-horizon/bptt-seed-0
.venv/bin/fptt train --recipe copy-100 --lr 4e-3 --forget-bias 0 --chrono-init 120 --precision bf16-mixed --threads 1 --epochs 200 --method bptt --out results/copy-100-horizon/bptt-200-seed-0
.venv/bin/fptt train --recipe copy-100 --lr 4e-3 --forget-bias 0 --chrono-init 120 --precision bf16-mixed --threads 1 --epochs 100 --method tbptt --horizon 10 --out results/copy-100-horizon/tbptt-h10-seed-0
.venv/bin/fptt train --recipe copy-100 --lr 4e-3 --forget-bias 0 --chrono-init 120 --precision bf16-mixed --threads 1 --epochs 100 --method tbptt --horizon 9 --out results/copy-100-horizon/tbptt-h9-seed-0
.venv/bin/fptt train --recipe copy-100 --lr 4e-3 --forget-bias 0 --chrono-init 120 --precision bf16-mixed --threads 1 --epochs 100 --method tbptt --horizon 7 --out results/copy-100-horizon/tbptt-h7-seed-0
.venv/bin/fptt train --recipe copy-100 --lr 4e-3 --forget-bias 0 --chrono-init 120 --precision bf16-mixed --threads 1 --epochs 100 --method tbptt --horizon 5 --out results/copy-100-horizon/tbptt-h5-seed-0
.venv/bin/fptt train --recipe copy-100 --lr 4e-3 --forget-bias 0 --chrono-init 120 --precision bf16-mixed --threads 1 --epochs 100 --method tbptt --horizon 3 --out results/copy-100-horizon/tbptt-h3-seed-0
.venv/bin/fptt train --recipe copy-100 --lr 4e-3 --forget-bias 0 --chrono-init 120 --precision bf16-mixed --threads 1 --epochs 100 --method tbptt --horizon 2 --out results/copy-100-horizon/tbptt-h2-seed-0
.venv/bin/fptt train --recipe copy-100 --lr 4e-3 --forget-bias 0 --chrono-init 120 --precision bf16-mixed --threads 1 --epochs 100 --method tbptt --horizon 1 --out results/copy-100-horizon/tbptt-h1-seed-0
.venv/bin/fptt train --recipe copy-100 --lr 4e-3 --forget-bias 0 --chrono-init 120 --precision bf16-mixed --threads 1 --epochs 100 --method fptt --horizon 10 --out results/copy-100-horizon/fptt-h10-seed-0
.venv/bin/fptt train --recipe copy-100 --lr 4e-3 --forget-bias 0 --chrono-init 120 --precision bf16-mixed --threads 1 --epochs 100 --method fptt --horizon 1 --out results/copy-100-horizon/fptt-h1-seed-0
