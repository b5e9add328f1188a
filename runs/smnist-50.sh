#!/usr/bin/env bash
# S-MNIST for 50 epochs: FPTT and TBPTT on a processor, two seeds, an hour to two of a core each; BPTT on a GPU,
# one seed. FPTT_DATA: a folder with the folder mnist.
set -euo pipefail
for method in fptt tbptt; do
  .venv/bin/fptt train --recipe smnist-small --method $method --num-chunks 14 --batch-size 128 --epochs 50 --precision bf16-mixed --engine compiled ${FPTT_DATA:+--data "$FPTT_DATA/mnist"} --out results/smnist-50/equal-epochs/$method-seed-0
  .venv/bin/fptt train --recipe smnist-small --method $method --num-chunks 14 --batch-size 128 --epochs 50 --precision bf16-mixed --engine compiled ${FPTT_DATA:+--data "$FPTT_DATA/mnist"} --seed 1 --out results/smnist-50/equal-epochs/$method-seed-1
done
TASKS=smnist bash runs/gpu.sh
