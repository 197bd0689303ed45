#!/bin/sh
# Measures reading and tokenizing by dsr and its peers in turns and prints a table; see benches/README.md.
# All arguments go to data.py: ./benches/data.sh --megabytes 1000
set -eu
cd "$(dirname "$0")/.."
venv=target/bench-venv
if [ ! -e "$venv/ready" ]; then
    echo "benches: run benches/run.sh first, which fetches the peers" >&2
    exit 1
fi
"$venv/bin/python" -c 'import datasets' 2>/dev/null || "$venv/bin/pip" install --quiet datasets==5.2.0
cargo build --release --quiet
bench=$(cargo bench --bench read_data --no-run 2>&1 | sed -n 's/.*(\(.*read_data-[0-9a-f]*\)).*/\1/p')
exec "$venv/bin/python" benches/data.py --bench "$bench" "$@"
