#!/bin/bash
# Runs on a bare GPU machine, in the repository's root: torch, numpy, scipy, safetensors and transformers; no network.
#
#   bash benchmarks/gpu/run.sh first BUILD WORK          # a step runs, and its loss is that of the CPU
#   bash benchmarks/gpu/run.sh product BUILD WORK        # a few steps of each training stage of the product itself
#   bash benchmarks/gpu/run.sh all BUILD WORK SECONDS    # learning rate, students, transfers; ends within SECONDS
#   bash benchmarks/gpu/run.sh collect WORK OUT PATTERN… # files into OUT in parts of 15 MB: cat parts | tar x
#
# BUILD is what `prepare.py` wrote (build/gpu), WORK a folder that stays between the commands.
set -u
cd "$(dirname "$0")/../.."
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TORCHINDUCTOR_CACHE_DIR=/tmp/inductor
here=benchmarks/gpu
now() { date +%s; }

first() {
    local build=$1 work=$2
    mkdir -p "$work/out"
    cp -r "$build/model" "$work/"
    nvidia-smi >"$work/out/nvidia-smi.txt" 2>&1 || echo "no GPU: a rehearsal"
    python3 $here/student.py check "$work/model" --against "$build/model/losses.json" 2>&1 | tee "$work/out/check.log"
}

product() {
    local build=$1 work=$2
    mkdir -p "$work/out"
    rm -rf "$work/product"
    cp -r "$build/product" "$work/product"
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$work/site" "$build"/wheels/*.whl
    mkdir -p "$work/dense" && cp "$build"/product/*.json "$build"/product/vocab.txt "$build/model/config.json" "$work/dense/"
    python3 -c "
from safetensors.torch import load_file, save_file
save_file({n: t.float() for n, t in load_file('$work/model/dense.safetensors').items()}, '$work/dense/model.safetensors')"
    cp $here/product.yaml "$work/"
    (cd "$work" && PYTHONPATH=$PYTHONPATH:$work/site timeout 200 python3 -m toolkit run product.yaml) >"$work/out/product.log" 2>&1
    cp "$work"/runs/*/report.md "$work/out/product.md" 2>/dev/null
    python3 - "$work" >>"$work/out/product.log" 2>&1 <<'PYTHON'
import json, pathlib, sys
for path in pathlib.Path(sys.argv[1], "runs").glob("*/**/manifest.json"):
    found = json.loads(path.read_text())
    print(found["stage"], found["seconds"], {k: v for k, v in found["metrics"].items() if not isinstance(v, (dict, list))})
PYTHON
}

all() {
    local build=$1 work=$2 end=$(($(now) + $3))
    local out=$work/out
    mkdir -p "$out"
    cp -r "$build/text" "$work/"
    (while sleep 5; do nvidia-smi --query-gpu=utilization.gpu,memory.used,power.draw,clocks.sm --format=csv,noheader; done >"$out/load.csv" 2>/dev/null) &
    local watch=$!
    python3 $here/student.py rates "$work/model" "$work/text" "$out" --tokens "${RATE_TOKENS:-10}" ${STUDENT_OPTIONS:-} 2>&1 | tee "$out/rates.log"
    local tasks=()
    for task in sst2 mnli qqp squad; do
        OMP_NUM_THREADS=1 python3 $here/transfer.py $task "$work/model" "$out" --until $((end - 5)) >"$out/$task.log" 2>&1 &
        tasks+=($!)
    done
    python3 $here/student.py make "$work/model" "$work/text" "$out" --until $((end - ${LAST_TRANSFERS:-55})) ${STUDENT_OPTIONS:-} 2>&1 | tee "$out/make.log"
    touch "$out/students.done"
    local failed=0
    for job in "${tasks[@]}"; do wait "$job" || failed=1; done
    kill $watch
    grep -h accuracy "$out"/*.log
    if [ $failed = 1 ]; then grep -H Error "$out"/*.log; return 1; fi
}

collect() {
    local work=$1 out=$2
    shift 2
    out=$(realpath "$out")
    # The patterns come quoted, so that they are expanded there and not here. shellcheck disable=SC2068
    (cd "$work/out" && tar cf - $@) | split -b 15000000 - "$out/part-"
    ls -la "$out"
}

"$@"
