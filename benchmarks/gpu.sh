#!/usr/bin/env bash
# Everything worth running on a GPU machine, within 10 minutes; writes at most 8 small files.
#   benchmarks/gpu.sh            # DEVICE=cuda SEEDS=0 OUT=benchmarks/results by default
#   benchmarks/gpu.sh scaling    # the scaling benchmark alone; call it until no cell is left
#   benchmarks/gpu.sh leworldmodel   # LeWorldModel's recipe on pictures of reacher; call it until
#                                    # it is evaluated. It alone needs dm_control, and 15 GB of disk
# On a machine without a GPU, DEVICE=cpu SHORT=1 runs it small, to see that it works.
#
# Each step has its own time limit, and one that fails does not stop the others: gpu_steps.json says
# how each of them ended, and the exit status is 1 if any failed. PYTHON chooses the interpreter. It
# needs no installation: where the package is not installed, it runs from this source tree (then
# gymnasium, farama-notifications, cloudpickle, jsonargparse, docstring-parser and typeshed-client
# must be on PYTHONPATH beside PyTorch, safetensors and the like; dm_control and mujoco are not
# needed).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
device=${DEVICE:-cuda}
out=${OUT:-benchmarks/results}
run=${RUN:-runs/gpu}
python=${PYTHON:-python3}
if [[ -z ${PYTHON:-} && -x .venv/bin/python ]]; then
    python=.venv/bin/python
fi
export PYTHONUNBUFFERED=1
export PYTHONSAFEPATH=1 # the folder forethought/ of this tree is no whole package
if ! "$python" -c 'import forethought.configs' 2>/dev/null; then
    export PYTHONPATH="$PWD/typings${PYTHONPATH:+:$PYTHONPATH}"
fi
forethought=("$python" -c 'import sys; from forethought.cli import main; sys.exit(main())')
mkdir -p "$out" "$(dirname "$run")"

steps=()
failed=0
# step NAME SECONDS COMMAND...: run it, and note how it ended (124: its time was over).
step() {
    local name=$1 limit=$2 began=$SECONDS status=0
    shift 2
    [[ -z ${SHORT:-} ]] || limit=$((4 * limit)) # nothing is timed there, and a CPU may be busy
    echo "== $name (at most $limit s)"
    timeout -k 5 "$limit" "$@" || status=$?
    ((status == 0)) || failed=1
    steps+=("{\"step\": \"$name\", \"status\": $status, \"seconds\": $((SECONDS - began)), \"limit\": $limit}")
    local joined short=false
    joined=$(printf ',\n  %s' "${steps[@]}")
    [[ -z ${SHORT:-} ]] || short=true
    printf '{"device": "%s", "short": %s, "steps": [%s\n]}\n' "$device" "$short" "${joined:1}" \
        >"$out/gpu_steps.json"
}

brief=()
few=()
small=()
if [[ -n ${SHORT:-} ]]; then
    brief=(--collection.episodes=64 --stages.joint.steps=40 --stages.predictor.steps=40)
    few=(--episodes 4 --timed-decisions 3)
    small=(--short)
fi

if [[ ${1:-} == scaling ]]; then
    # Each cell is written when it is done, and what the ledger holds is not done again.
    large=(--large --limit 400)
    [[ -z ${SHORT:-} ]] || large=(--sizes 25k --seeds 0 --updates 20 --episodes 16)
    step scaling 570 "$python" benchmarks/scaling.py --device "$device" "${large[@]}" \
        --out "$out/gpu_scaling.jsonl"
    exit "$failed"
fi

if [[ ${1:-} == leworldmodel ]]; then
    begin=(--config leworldmodel)
    [[ -z ${SHORT:-} ]] || begin+=(--collection.episodes=2 --collection.num-envs=2
        --collection.workers=1 --stages.joint.steps=2 --stages.joint.batch=2 --stages.readouts.steps=2)
    [[ ! -f $run-leworldmodel/config.yaml ]] || begin=(--resume true) # where the last call stopped
    if [[ ! -f $run-leworldmodel/diagnostics.json ]]; then
        step leworldmodel 570 "${forethought[@]}" train "${begin[@]}" --run "$run-leworldmodel" \
            --device "$device"
    else
        step evaluate_leworldmodel 570 "${forethought[@]}" evaluate "$run-leworldmodel" \
            --device "$device" "${few[@]}" --json "$out/gpu_leworldmodel.json"
    fi
    exit "$failed"
fi

# What no other machine can tell comes first: milliseconds per decision. Limits add up to 580 s.
step planning_large 145 "$python" benchmarks/gpu_planning.py large --device "$device" "${small[@]}" \
    --json "$out/gpu_planning_large.json"
step planning_small 125 "$python" benchmarks/gpu_planning.py small --device "$device" "${small[@]}" \
    --json "$out/gpu_planning_small.json"

# One seed fits into the limits and the 8 files; more take more time.
for seed in ${SEEDS:-0}; do
    rm -rf "$run-$seed" "$run-$seed-float32"
    step "train_$seed" 100 "${forethought[@]}" train --config two-rooms --run "$run-$seed" \
        --seed "$seed" --device "$device" "${brief[@]}"
    if [[ -z ${SHORT:-} ]]; then
        # The same training in float32: what bfloat16, the default on CUDA, saves and costs.
        step "train_float32_$seed" 90 "${forethought[@]}" train --config two-rooms \
            --run "$run-$seed-float32" --data "$run-$seed/data" --seed "$seed" \
            --device "$device" --precision float32
        cp "$run-$seed/training.json" "$out/gpu_two_rooms_${seed}_bfloat16.json" || failed=1
        cp "$run-$seed-float32/training.json" "$out/gpu_two_rooms_${seed}_float32.json" || failed=1
        step "distill_$seed" 45 "${forethought[@]}" distill "$run-$seed" --seed "$seed" --device "$device"
    fi
    step "evaluate_$seed" 75 "${forethought[@]}" evaluate "$run-$seed" --device "$device" "${few[@]}" \
        --json "$out/gpu_two_rooms_$seed.json"
done
exit "$failed"
