#!/usr/bin/env bash
# The pixel tasks of the paper on one GPU, sized for 13 minutes of an H100: S-MNIST, permuted S-MNIST, sequential CIFAR-10,
# FPTT and TBPTT side by side on the device, 30 epochs each (a cosine ends with them). A task has four minutes; a run that is
# not done by then saves itself and goes on when the script is called again. Options after the name of the script are those
# of `fptt train` and come last. FPTT_DATA: a folder with the folders mnist and cifar10; FPTT: the command, PYTHON -m fptt
# where the package is not installed; MINUTES: of a task.
set -euo pipefail
read -ra fptt <<< "${FPTT:-.venv/bin/fptt}"

train() { # NAME METHOD OPTIONS…
    local out="results/$1-gpu/equal-epochs/$2-seed-0" method=$2 status=0
    shift 2
    if compgen -G "$out/checkpoint-*" > /dev/null; then
        set -- --resume
    elif [[ -e $out/summary.json ]]; then
        return # finished: its checkpoints are gone
    else
        set -- "$@" --method "$method" --seed 0
    fi
    timeout --signal=INT --kill-after=30 "$((${MINUTES:-4} * 60))" "${fptt[@]}" train "$@" --out "$out" || status=$?
    # 124: the time was up; 130: interrupted by hand
    [[ $status -eq 0 || $status -eq 124 || $status -eq 130 ]]
}

task() { # NAME OPTIONS…
    train "$1" fptt "${@:2}" & local first=$!
    train "$1" tbptt "${@:2}" & local second=$!
    wait "$first" && wait "$second"
}

common=(--accelerator cuda --engine compiled --batch-size 128 --epochs 30)
task smnist --recipe smnist-small ${FPTT_DATA:+--data "$FPTT_DATA/mnist"} --num-chunks 14 "${common[@]}" "$@"
task psmnist --recipe psmnist-small ${FPTT_DATA:+--data "$FPTT_DATA/mnist"} --num-chunks 14 "${common[@]}" "$@"
task cifar10 --recipe cifar10-small ${FPTT_DATA:+--data "$FPTT_DATA/cifar10"} --num-chunks 16 "${common[@]}" "$@"
