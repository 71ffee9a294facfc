#!/usr/bin/env bash
# Everything worth running on a GPU machine, within 10 minutes; writes small JSON files to benchmarks/results/.
#   benchmarks/gpu.sh            # SEEDS="0" DEVICE=cuda by default
# On a machine without a GPU, DEVICE=cpu SHORT=1 runs it small, to see that it works.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
device=${DEVICE:-cuda}
out=${OUT:-benchmarks/results}
run=${RUN:-runs/gpu}
brief=()
if [[ -n ${SHORT:-} ]]; then
    brief=(--collection.episodes=64 --stages.joint.steps=40 --stages.predictor.steps=40)
fi
for seed in ${SEEDS:-0}; do
    rm -rf "$run-$seed"
    forethought train --config two-rooms --run "$run-$seed" --seed "$seed" --device "$device" "${brief[@]}"
    if [[ -n ${SHORT:-} ]]; then
        forethought evaluate "$run-$seed" --device "$device" --episodes 4 --timed-decisions 3 --json "$out/gpu_two_rooms_$seed.json"
        continue
    fi
    # The same training in float32: what bfloat16, the default on CUDA, saves and costs.
    rm -rf "$run-$seed-float32"
    forethought train --config two-rooms --run "$run-$seed-float32" --data "$run-$seed/data" --seed "$seed" --device "$device" \
        --precision float32
    cp "$run-$seed/training.json" "$out/gpu_two_rooms_${seed}_bfloat16.json"
    cp "$run-$seed-float32/training.json" "$out/gpu_two_rooms_${seed}_float32.json"
    forethought distill "$run-$seed" --seed "$seed" --device "$device"
    forethought evaluate "$run-$seed" --device "$device" --json "$out/gpu_two_rooms_$seed.json"
done
