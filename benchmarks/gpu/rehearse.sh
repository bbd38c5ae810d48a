#!/bin/bash
# Rehearses the GPU run on a CPU, in minutes: the same commands on two layers, 128 rows of each task and little text.
#
#   bash benchmarks/gpu/rehearse.sh ../shared/data [FOLDER]    # in the repository's root, with its .venv active
set -eu
data=$1 folder=${2:-build/gpu-rehearsal}
here=benchmarks/gpu
export PYTHONPATH=$PWD OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
rm -rf "$folder"
python $here/prepare.py "$data" "$folder/whole" --sentences 20000
python $here/shrink.py "$folder/whole" "$folder/small"
python $here/student.py check "$folder/small/model" --write "$folder/small/model/losses.json"
bash $here/run.sh first "$folder/small" "$folder/work"
export STUDENT_OPTIONS="--tokens 0.004 --step-tokens 512 --batches 2 --rates 1e-3" LAST_TRANSFERS=60
bash $here/run.sh all "$folder/small" "$folder/work" 300
mkdir "$folder/back"
bash $here/run.sh collect "$folder/work" "$folder/back" '80-*.safetensors' students.jsonl transfer-sst2.jsonl transfer-mnli.jsonl transfer-qqp.jsonl
mkdir "$folder/results"
cat "$folder"/back/part-* | tar x -C "$folder/results"
python $here/finish.py scores "$folder/results" "$data/squad/split_heldout.json"
