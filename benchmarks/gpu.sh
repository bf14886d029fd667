#!/usr/bin/env bash
# What one GPU shows, most important first, in about ten minutes on an H100 or H200; no network.
#
#   benchmarks/gpu.sh [FOLDER]
#
# Writes JSON records and a log into FOLDER (default: records/gpu). Resumable: what is finished is
# not taken again, and half a record is gone on with. A step that fails does not keep the others
# from being taken, as a GPU may be had only once: it is named at the end, and the exit status is 1.
# No speed counts of a pair whose captured passes are not its plain ones.
#
# PAIRS, BATCHES, MINUTES (of each pair), DEVICE, ROWS and PYTHON can be set; on a CPU it is
# rehearsed by
#   DEVICE=cpu PAIRS=cpu BATCHES="1 2" ROWS=4 MINUTES=1 benchmarks/gpu.sh /tmp/rehearsal
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

folder=${1:-records/gpu}
python=${PYTHON:-.venv/bin/python}
command -v "$python" >/dev/null || python=python3
device=${DEVICE:-cuda}
pairs=${PAIRS:-14b+1.5b 32b+1.5b}
batches=${BATCHES:-1 4 16 64}
minutes=${MINUTES:-3.2}
rows=${ROWS:-32}
failed=()
mkdir -p "$folder" || exit
exec > >(tee -a "$folder/log.txt") 2>&1
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1

# step NAME COMMAND ...
step() {
    local name=$1 started=$SECONDS
    shift
    "$@" || failed+=("$name")
    echo "$name: $((SECONDS - started)) s"
}

# 1. Captured passes against plain ones: every shape, both number types; how many, how long.
graphs() {
    local dtype=$1 record="$folder/graphs-$1.json"
    if [ ! -s "$record" ]; then
        "$python" -m foreal_core.benchmark.graphs --pair bundled --dtype "$dtype" \
            --device "$device" --rows "$rows" >"$record.part" || return
        mv "$record.part" "$record"
    fi
    "$python" - "$record" <<'PYTHON'
import json
import sys

record = json.load(open(sys.argv[1], encoding="utf-8"))
# Sums in another order; bfloat16 has 8 bits.
allowed = {"float32": 1e-4, "bfloat16": 0.05}[record["dtype"]]
wrong = []
for author, one in record["models"].items():
    print(
        f"{record['dtype']} {author}: {one['captures']} captures in {one['seconds']:.1f} s, "
        f"worst difference {one['worst']:.1e}, same choice {one['same_choice']:.3f}"
    )
    if not one["worst"] <= allowed:  # not a number, too
        wrong.append(author)
if wrong:
    sys.exit(f"captured passes are not the plain ones: {', '.join(wrong)}")
PYTHON
}

# 2. Pairs of real size against generate and against the floor of the memory's bandwidth.
bench() {
    local batch options=()
    for batch in $batches; do
        options+=(--batch "$batch")
    done
    "$python" -m foreal_core bench --pair "$1" --device "$device" --dtype bfloat16 \
        --only leader --only draft --only 'transformers-*' --only foreal-p0.6 \
        --only foreal-p1.0 --only foreal-p0.6-even \
        "${options[@]}" --answers 1 --repeats 1 --max-new-tokens 256 --minutes "$minutes" \
        --out "$folder/bench-$1.json"
}

for dtype in float32 bfloat16; do
    step "graphs-$dtype" graphs "$dtype"
done
for pair in $pairs; do
    step "bench-$pair" bench "$pair"
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "FAILED: ${failed[*]}"
    exit 1
fi
