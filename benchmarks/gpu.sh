#!/usr/bin/env bash
# What one GPU shows, most important first, in about ten minutes on an H100 or H200; no network.
#
#   benchmarks/gpu.sh [FOLDER]
#
# Writes JSON records into FOLDER (default: records/gpu). Resumable: what is finished is not taken
# again, and half a record is gone on with. Exactness first: with a pair whose graphs are wrong no
# speed counts, so a difference ends the script.
#
# PAIRS, BATCHES, MINUTES (of each pair), DEVICE, ROWS and PYTHON can be set; on a CPU it is
# rehearsed by
#   DEVICE=cpu PAIRS=cpu BATCHES="1 2" ROWS=4 MINUTES=1 benchmarks/gpu.sh /tmp/rehearsal
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folder=${1:-records/gpu}
python=${PYTHON:-.venv/bin/python}
device=${DEVICE:-cuda}
pairs=${PAIRS:-14b+1.5b 32b+1.5b}
batches=${BATCHES:-1 4 16 64}
minutes=${MINUTES:-3.5}
rows=${ROWS:-32}
mkdir -p "$folder"
export HF_HUB_OFFLINE=1

# 1. Captured passes against plain ones: every shape, both number types; how many, how long.
for dtype in float32 bfloat16; do
    record="$folder/graphs-$dtype.json"
    if [ ! -s "$record" ]; then
        "$python" -m foreal_core.benchmark.graphs --pair bundled --dtype "$dtype" \
            --device "$device" --rows "$rows" >"$record.part"
        mv "$record.part" "$record"
    fi
    "$python" - "$record" <<'PYTHON'
import json
import sys

record = json.load(open(sys.argv[1], encoding="utf-8"))
# Sums in another order; bfloat16 has 8 bits.
allowed = {"float32": 1e-4, "bfloat16": 0.05}[record["dtype"]]
for author, one in record["models"].items():
    print(
        f"{record['dtype']} {author}: {one['captures']} captures in {one['seconds']:.1f} s, "
        f"worst difference {one['worst']:.1e}, same choice {one['same_choice']:.3f}"
    )
    if one["worst"] > allowed:
        sys.exit(f"the {author}'s captured passes are not its plain ones")
PYTHON
done

# 2. Pairs of real size against generate and against the floor of the memory's bandwidth.
batch_options=()
for batch in $batches; do
    batch_options+=(--batch "$batch")
done
for pair in $pairs; do
    "$python" -m foreal_core bench --pair "$pair" --device "$device" --dtype bfloat16 \
        --only leader --only draft --only 'transformers-*' --only foreal-p0.6 \
        --only foreal-p1.0 --only foreal-p0.6-even \
        "${batch_options[@]}" --answers 1 --repeats 1 --max-new-tokens 256 --minutes "$minutes" \
        --out "$folder/bench-$pair.json"
done
