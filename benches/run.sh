#!/bin/sh
# Measures dsr and its peer in turns and prints a table; see benches/README.md.
# All arguments go to compare.py: ./benches/run.sh --rounds 3 --steps 10
set -eu
cd "$(dirname "$0")/.."
venv=target/bench-venv
if [ ! -e "$venv/ready" ]; then
    free_kb=$(df -Pk . | awk 'NR == 2 { print $4 }')
    if [ "$free_kb" -lt 8000000 ]; then
        echo "benches: PyTorch for the peer needs 8 GB in $PWD/target, $((free_kb / 1000000)) GB are free" >&2
        exit 1
    fi
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 peft==0.21.2 pyarrow
    touch "$venv/ready"
fi
cargo build --release --quiet
exec "$venv/bin/python" benches/compare.py "$@"
