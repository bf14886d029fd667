#!/usr/bin/env bash
# Runs other people's clients against `foreal serve` on the bundled pair: an answer, a streamed one,
# two tool turns in one conversation, structured output, an overflow, a cancel, a busy server each.
#
#     tests/serve/clients/run.sh [FOLDER]
#
# FOLDER keeps their packages (a new one for each run without it). Needs node and the network for
# the packages; the clients themselves ask 127.0.0.1 alone. Not in CI: these versions of the
# packages do not fit the pinned ones.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "$here/../../.." && pwd)"
folder="${1:-$(mktemp -d)}"
python="${PYTHON:-$root/.venv/bin/python}"
port="${PORT:-8917}"
export FOREAL_URL="http://127.0.0.1:$port" FOREAL_BUSY_URL="http://127.0.0.1:$((port + 1))"
export NO_PROXY=127.0.0.1 LITELLM_LOCAL_MODEL_COST_MAP=True OPENAI_AGENTS_DISABLE_TRACING=1

if [ ! -x "$folder/venv/bin/python" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet --requirement "$here/requirements.txt"
fi
mkdir -p "$folder/node"
cp "$here"/*.mjs "$here/package.json" "$folder/node/"
[ -d "$folder/node/node_modules" ] || (cd "$folder/node" && npm install --silent --no-audit --no-fund)

stop=()
trap 'kill "${stop[@]}" 2>/dev/null || true' EXIT
cd "$root"
"$python" -m foreal_core serve --port "$port" --batch-size 8 2>"$folder/server.log" &
stop+=($!)
"$python" -m foreal_core serve --port $((port + 1)) --batch-size 1 --max-queue 0 2>"$folder/busy.log" &
stop+=($!)
for url in "$FOREAL_URL" "$FOREAL_BUSY_URL"; do
    curl --silent --fail --retry 100 --retry-all-errors --retry-delay 2 --output "$folder/ready" "$url/health"
done

# Takes the only row of the other server, again and again.
endless='{"messages": [{"role": "user", "content": "Kim"}], "policy": "wait", "lead_probability": 1,
  "repetition_penalty": 1.3, "stream": true}'
(while true; do
    curl --silent --max-time 600 --output "$folder/busy" --json "$endless" "$FOREAL_BUSY_URL/v1/chat/completions" || sleep 1
done) &
stop+=($!)
until curl --silent "$FOREAL_BUSY_URL/metrics" | grep -q '^foreal:num_requests_running 1'; do sleep 0.2; done

failed=0
for check in "$here"/check_*.py; do
    (cd "$here" && "$folder/venv/bin/python" "$check") || failed=1
done
for check in "$folder"/node/check_*.mjs; do
    (cd "$folder/node" && node "$check") || failed=1
done
exit $failed
