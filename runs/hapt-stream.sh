#!/usr/bin/env bash
# All HAPT recordings as one stream, labels on time and 500 steps (10 s) late. FPTT_DATA: a folder with the folder hapt_stream.
set -euo pipefail
stream() {
  [ -e "results/hapt-stream/$1/summary.json" ] || .venv/bin/fptt stream --data "$FPTT_DATA/hapt_stream" --out "results/hapt-stream/$1" "${@:2}"
}
stream fptt-0 --method fptt --baselines
stream tbptt-0 --method tbptt
stream fptt-500 --method fptt --delay 500 --baselines
stream tbptt-500 --method tbptt --delay 500
