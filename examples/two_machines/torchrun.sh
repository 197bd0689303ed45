#!/bin/bash
# Ranks started by torchrun. Run on each machine: NODE_RANK=0 on the first, 1 on the second.
#     NNODES=2 NPROC_PER_NODE=8 NODE_RANK=0 MASTER_ADDR=worker-0 examples/two_machines/torchrun.sh -p steps=1000
# Without variables: one machine. Arguments are those of `dsr run`.
set -eu
exec torchrun \
    --nnodes "${NNODES:-1}" \
    --node-rank "${NODE_RANK:-0}" \
    --nproc-per-node "${NPROC_PER_NODE:-2}" \
    --master-addr "${MASTER_ADDR:-127.0.0.1}" \
    --master-port "${MASTER_PORT:-29500}" \
    --no-python \
    dsr run examples/two_machines/train.rhai "$@"
