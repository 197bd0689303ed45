#!/bin/sh
# Times ZeRO's stages on two ranks beside DeepSpeed and prints a table; see benches/README.md.
# All arguments go to zero_step.py: ./benches/zero_step.sh --rounds 3 --steps 8
set -eu
cd "$(dirname "$0")/.."
venv=target/bench-venv
if [ ! -e "$venv/zero-ready" ]; then
    [ -e "$venv/bin/python" ] || python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 pyarrow ninja
    DS_BUILD_OPS=0 "$venv/bin/pip" install --quiet deepspeed==0.19.8
    touch "$venv/zero-ready"
fi
cargo build --release --quiet
# DeepSpeed builds its shared-memory collectives at the first start, with ninja.
PATH="$PWD/$venv/bin:$PATH" exec "$venv/bin/python" benches/zero_step.py "$@"
