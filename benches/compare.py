"""Runs dsr and the peer in turns (A B A B) and prints how they compare.

Both print one JSON line a step; this program notes when each line arrives, so that both are timed in
the same way and from outside: the first step from the start of the process, the rate from the line
that ends the warm-up to the last. The peak memory is what the kernel reports of the ended process.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
PEER = [sys.executable, HERE / "peer.py"]

# The weights of each model that take part in matrix products: twelve blocks, and the head.
LAYERS, WIDTH, VOCABULARY = 12, 768, 50257
BLOCK_WEIGHTS = {
    "gpt2": 12 * WIDTH**2,
    # Queries and outputs, keys and values of a third, gate, up and down.
    "llama": 2 * WIDTH**2 + 2 * WIDTH * 256 + 3 * WIDTH * 2304,
}
NAMES = {"gpt2": "GPT-2 124M", "llama": "a LLaMA of 121M"}


class Run:
    """One ended process."""

    def __init__(self, command, steps, environment):
        began = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
        self.arrivals, self.losses = [], []
        for line in process.stdout:
            try:
                said = json.loads(line)
            except ValueError:
                continue
            if isinstance(said, dict) and "step" in said:
                self.arrivals.append(time.monotonic() - began)
                self.losses.append(said["loss"])
        _, status, usage = os.wait4(process.pid, 0)
        if status != 0:
            sys.exit(f"benches: {' '.join(map(str, command))} failed (wait status {status})")
        if len(self.arrivals) != steps:
            sys.exit(f"benches: {command[0]} made {len(self.arrivals)} steps instead of {steps}")
        self.peak_mb = usage.ru_maxrss / 1024

    def rate(self, warmup, tokens_per_step):
        seconds = self.arrivals[-1] - self.arrivals[warmup - 1]
        return (len(self.arrivals) - warmup) * tokens_per_step / seconds


def flops_per_token(family, seq_len, lora):
    """Forward and backward: 6 for each weight of a product, 4 for a frozen one, and attention's two
    products. An adapter's own are not counted."""
    weights = LAYERS * BLOCK_WEIGHTS[family] + VOCABULARY * WIDTH
    return (4 if lora else 6) * weights + 12 * LAYERS * WIDTH * seq_len


def in_turns(rounds, commands, steps, environment):
    """The runs of each command; every round has each of them once."""
    runs = {name: [] for name in commands}
    for n in range(rounds):
        for name, command in commands.items():
            print(f"round {n + 1}: {name}", file=sys.stderr)
            runs[name].append(Run(command, steps, environment))
    return runs


def row(title, unit, ours, theirs, digits):
    """A line of the table: the medians, the spread of both, and the ratio."""

    def cell(values):
        spread = f"({min(values):.{digits}f}..{max(values):.{digits}f})" if len(values) > 1 else ""
        return f"{statistics.median(values):.{digits}f} {unit} {spread}".strip()

    ratio = statistics.median(ours) / statistics.median(theirs)
    return f"| {title} | {cell(ours)} | {cell(theirs)} | {ratio:.2f} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5, help="measured steps, after the warm-up")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--micro-batch-size", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--family", choices=sorted(NAMES), default="gpt2")
    parser.add_argument("--dropout", type=float, default=0.1, help="of GPT-2")
    parser.add_argument("--lora", type=int, default=0, help="the rank of an adapter; 0 trains everything")
    parser.add_argument("--dsr", type=Path, default=HERE.parent / "target" / "release" / "dsr")
    parser.add_argument("--golden", type=Path, help="directory of gpt2-tiny-v512 and its tokens")
    args = parser.parse_args()

    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "TOKENIZERS_PARALLELISM": "true"}
    peer = [*PEER, "--threads", str(args.threads)]
    steps = args.warmup + args.steps
    commands = {
        "dsr": [
            args.dsr, "run", HERE / "train_125m.rhai", "-p", f"steps={steps}", "-p", f"family={args.family}",
            "-p", f"micro_batch_size={args.micro_batch_size}", "-p", f"seq_len={args.seq_len}",
            "-p", f"dropout={args.dropout}", "-p", f"lora={args.lora}",
        ],
        "peer": [
            *peer, "train", f"--steps={args.steps}", f"--warmup={args.warmup}",
            f"--micro-batch-size={args.micro_batch_size}", f"--seq-len={args.seq_len}",
            f"--dropout={args.dropout}", f"--family={args.family}",
            f"--lora={args.lora}",
        ],
    }
    sgemm = subprocess.run([*peer, "sgemm"], env=environment, check=True, capture_output=True, text=True)
    gflops = json.loads(sgemm.stdout)["gflops"]
    runs = in_turns(args.rounds, commands, steps, environment)
    ours, theirs = runs["dsr"], runs["peer"]

    tokens = args.micro_batch_size * args.seq_len
    rates = [[run.rate(args.warmup, tokens) for run in side] for side in (ours, theirs)]
    share = flops_per_token(args.family, args.seq_len, args.lora) / (gflops * 1e9) * 100
    what = NAMES[args.family] + (f" with an adapter of rank {args.lora}" if args.lora else "")
    print(f"{what}, fp32, {args.micro_batch_size} x {args.seq_len} tokens a step, "
          f"{args.threads} threads, {args.rounds} rounds of {args.steps} steps; "
          f"a large sgemm reaches {gflops:.0f} GFLOP/s\n")
    print(f"| | dsr | {'peft + ' if args.lora else ''}transformers + PyTorch | ratio |\n|---|---|---|---|")
    print(row("speed", "tokens/s", *rates, 1))
    print(row("share of the sgemm rate", "%", *[[r * share for r in side] for side in rates], 0))
    print(row("peak memory", "MB", *[[run.peak_mb for run in side] for side in (ours, theirs)], 0))
    print(row("start to end of first step", "s", *[[run.arrivals[0] for run in s] for s in (ours, theirs)], 2))
    print(row("loss at the last step", "", *[[run.losses[-1] for run in s] for s in (ours, theirs)], 3))
    if args.golden:
        commands = {
            "dsr": [
                args.dsr, "run", HERE / "gpt2_golden.rhai", "-p", f"model={args.golden}/gpt2-tiny-v512",
                "-p", f"data={args.golden}/tokens-v512.parquet", "-p", "steps=1",
            ],
            "peer": [*peer, "golden", args.golden],
        }
        # Short processes: more of them cost little and say more.
        runs = in_turns(3 * args.rounds, commands, 1, environment)
        print(row("start to end of first step, tiny model", "s",
                  *[[run.arrivals[0] for run in runs[name]] for name in commands], 2))


if __name__ == "__main__":
    main()
