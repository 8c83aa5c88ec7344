#!/usr/bin/env bash
# Benchmarks on one CUDA device, planned for eight minutes (it has not run on a GPU yet): random Llama-type models of 1B
# and 8B in NF4, then the tests that need CUDA. Results go to benchmarks/results, or to the folder in the first argument.
# TINY=1 does the same with a model of two layers, on any machine, to check that everything runs.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
results=${1:-benchmarks/results}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
small=${TINY:+--tiny}

"$python" -c 'import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device")'
for size in 1b 8b; do
    kind=$size
    if [ -n "$small" ]; then kind=tiny; fi
    "$python" -m benchmarks.random_model "$kind" "$work/$size"
done
measure() { # SIZE PART...: the parts of one size; if one fails, the script continues
    local size=$1
    shift
    "$python" -m benchmarks.run "$@" --model "$work/$size" --name="-$size" --results "$results" --repeats 1 $small ||
        echo "failed: $size $*"
}
measure 1b dpo grpo sampling --steps 4
measure 8b memory --longest 1024 --response 896 --steps 2
measure 8b dpo grpo --steps 3
if [ "$results" = benchmarks/results ]; then "$python" -m benchmarks.table; fi
"$python" -m pytest -q -m gpu || echo "failed or not found: tests marked gpu"
