#!/usr/bin/env bash
# math-verify 0.9.0: ordinary ways to write a number are read as another number or as nothing, with no
# error: 1e3 as 1, a thousand with LaTeX's thin space as 1 (0 inside dollars), a true minus sign as
# nothing; and two boxed answers with a comma somewhere between them become one set.
#
# Guessed: 1000, 1000, -5, and the last box.
# Matters to: benchmark scores; each of these grades a right answer as wrong.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet 'math-verify==0.9.0' 'latex2sympy2-extended==1.11.0'
"$work/venv/bin/python" - <<'PY'
from importlib.metadata import version

from math_verify import parse, verify

texts = {  # each with the value that a reader sees in it
    "1e3": "1000",
    "1\\,000": "1000",
    "$1\\,000$": "1000",
    "\N{MINUS SIGN}5": "-5",
    "\\boxed{3}. No, I forgot Tom, so it is \\boxed{4}.": "4",
    "1,000": "1000",  # this one is read as it is meant
}
seen = {}
print("math-verify", version("math-verify"))
for text, value in texts.items():
    read = parse(text)
    seen[text] = (str(read[0]) if read else None, verify(parse(value), read))
    print(f"{text!r:55} read as {seen[text][0]!s:9} equals {value}: {seen[text][1]}")
stated = dict(zip(texts, ["1", "1", "1*0", None, "{3, 4}", "1000"]))
assert {text: read for text, (read, _) in seen.items()} == stated, "CHANGED"
assert [right for _, right in seen.values()] == [False] * 5 + [True], "CHANGED"
print("as stated: five right answers are graded as wrong")
PY
