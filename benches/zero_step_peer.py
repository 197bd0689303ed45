"""The peer of benches/zero_step.rhai: the same training with transformers and DeepSpeed, on the CPU.

One rank of it, started with torchrun's environment. Rank 0 prints one JSON line a step.
"""

import argparse
import json
import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import torch
from peer import austen_rows
from transformers import GPT2Config, GPT2LMHeadModel


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--stage", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    args = parser.parse_args()
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    deepspeed.init_distributed(dist_backend="gloo")
    shape = GPT2Config(n_positions=128, n_embd=384, n_layer=10, n_head=6,
                       embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
    model = GPT2LMHeadModel(shape).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, weight_decay=0.1, fused=True)
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": args.stage},
        "zero_allow_untested_optimizer": True,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    rows = austen_rows(128)
    for step in range(args.steps):
        first = (step * world_size + rank) * 2
        batch = rows[first : first + 2]
        loss = engine(input_ids=batch, labels=batch).loss
        engine.backward(loss)
        engine.step()
        if rank == 0:
            print(json.dumps({"step": step + 1, "loss": loss.item()}), flush=True)


main()
