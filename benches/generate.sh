#!/bin/sh
# Measures generation by dsr and its peers in turns and prints a table; see benches/README.md.
# All arguments go to generate.py: ./benches/generate.sh --rounds 3
set -eu
cd "$(dirname "$0")/.."
venv=target/bench-venv
if [ ! -e "$venv/ready" ]; then
    echo "benches: run benches/run.sh first, which fetches the peers" >&2
    exit 1
fi
"$venv/bin/python" -c 'import ctranslate2' 2>/dev/null || "$venv/bin/pip" install --quiet ctranslate2==4.8.5
cargo build --release --quiet
exec "$venv/bin/python" benches/generate.py "$@"
