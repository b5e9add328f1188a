#!/usr/bin/env bash
# The pixel tasks of the paper on one GPU: S-MNIST and permuted S-MNIST for 50 epochs, sequential CIFAR-10 for 40, each with
# FPTT, TBPTT and BPTT, all side by side, since one such run leaves most of a GPU idle. They share it at the same time where
# CUDA's multi-process service runs (`nvidia-cuda-mps-control -d` before, `echo quit | nvidia-cuda-mps-control` after), and
# take turns otherwise. What is not done after MINUTES saves itself and goes on when the script is called again; it is never
# killed, since that would take the other programs of the service with it. TASKS: which of smnist psmnist cifar10; METHODS:
# which of fptt tbptt bptt; SEEDS: 0 unless said. FPTT_DATA: a folder with the folders mnist and cifar10; FPTT: the command,
# PYTHON -m fptt where the package is not installed. Options after the name of the script are those of `fptt train` and come
# last.
set -euo pipefail
read -ra fptt <<< "${FPTT:-.venv/bin/fptt}"
end=$((SECONDS + ${MINUTES:-13} * 60))

train() { # NAME METHOD SEED OPTIONS…
    local out="results/$1/equal-epochs/$2-seed-$3" method=$2 seed=$3 status=0
    shift 3
    if compgen -G "$out/checkpoint-*" > /dev/null; then
        set -- --resume
    elif [[ -e $out/summary.json ]]; then
        return # finished: its checkpoints are gone
    else
        [[ $method == bptt ]] || set -- --engine compiled "$@"
        set -- --accelerator cuda --batch-size 128 --method "$method" --seed "$seed" "$@"
    fi
    timeout --signal=INT "$((end - SECONDS))" "${fptt[@]}" train "$@" --out "$out" || status=$?
    # 124: the time was up; 130: interrupted by hand
    [[ $status -eq 0 || $status -eq 124 || $status -eq 130 ]]
}

mnist=(${FPTT_DATA:+--data "$FPTT_DATA/mnist"} --num-chunks 14 --epochs 50)
cifar10=(${FPTT_DATA:+--data "$FPTT_DATA/cifar10"} --num-chunks 16 --epochs 40)
running=()
for task in ${TASKS:-psmnist cifar10 smnist}; do
    case $task in
        smnist) options=(smnist-50 --recipe smnist-small "${mnist[@]}") ;;
        psmnist) options=(psmnist-50 --recipe psmnist-small "${mnist[@]}") ;;
        cifar10) options=(cifar10-40 --recipe cifar10-small "${cifar10[@]}") ;;
        *) echo "TASKS must be of smnist, psmnist, cifar10, got $task" >&2; exit 2 ;;
    esac
    for method in ${METHODS:-fptt tbptt bptt}; do
        for seed in ${SEEDS:-0}; do
            own=("${options[@]:1}" "$@")
            train "${options[0]}" "$method" "$seed" "${own[@]}" &
            running+=($!)
        done
    done
done
for process in "${running[@]}"; do
    wait "$process"
done
