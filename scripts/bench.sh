#!/usr/bin/env bash
# Measures flowgate against testpmd, both as whole processes on one worker core, in the same run:
#   scripts/bench.sh [--quick] [--json FILE] [--svg DIR] [CASE ...]      (--list names the cases)
#
# Exits 3 if something it needs is missing. What is measured, and how, is in scripts/bench/.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-/usr/bin/python3}
if ! command -v "$python" >/dev/null; then
    echo "bench.sh: $python is missing; install python3" >&2
    exit 3
fi
exec "$python" scripts/bench/bench.py "$@"
