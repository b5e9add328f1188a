#!/usr/bin/env bash
# The results table of the README: three methods, three seeds, at equal epochs, updates and time. About 30 minutes.
set -euo pipefail
.venv/bin/fptt compare --task digits --methods bptt,tbptt,fptt --seeds 3 --out out/digits-compare
