"""A step of two ranks that share a model beside one process with as many threads: two stages of a pipeline,
two ranks that share each layer, and these with parts of the tokens.

    python3 benches/mesh_steps.py [--layers 12] [--width 768] [--tokens 256] [--rounds 3] [--steps 4] [DSR]

GPT-2 (124M) on Austen's novels in fp32 without dropout, 8 micro batches a step, on the CPU. The ways run in turns,
each alone; the time is the median of all steps but the first of each run, from `metrics.jsonl`, with the lowest
and highest in brackets.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile

RECIPE = """
param("layers", 12, "blocks");
param("width", 768, "columns");
param("tokens", 256, "tokens of a row");
param("steps", 4, "steps of a run");
param("stages", 1, "stages of a pipeline");
param("sharers", 1, "ranks that share each layer");
param("parts", false, "whether they have parts of the tokens");
let rows = dataset("dsr:austen", #{ split: "validation" }).tokenize(tokenizer("dsr:gpt2")).pack(P::tokens);
let model = new_model("gpt2", #{
    n_layer: P::layers, n_embd: P::width, n_head: P::width / 64, n_positions: P::tokens,
    resid_pdrop: 0.0, embd_pdrop: 0.0, attn_pdrop: 0.0,
});
let engine = init_engine(model, #{
    micro_batch_size: 1,
    gradient_accumulation_steps: 8,
    pipeline: #{ stages: P::stages },
    tensor_parallel: #{ autotp_size: P::sharers, sequence_parallel: P::parts },
});
let run = start_run(engine, rows.loader(#{ micro_batch_size: 1, endless: true }), #{
    total_steps: P::steps, name: "timed",
});
while run.train_batch() {}
"""

WAYS = {
    "one process, two threads": (1, {}),
    "two stages": (2, {"stages": 2}),
    "two ranks share layers": (2, {"sharers": 2}),
    "the same, parts of the tokens": (2, {"sharers": 2, "parts": "true"}),
}


def arguments():
    parser = argparse.ArgumentParser()
    for name, usual in [("layers", 12), ("width", 768), ("tokens", 256), ("rounds", 3), ("steps", 4)]:
        parser.add_argument(f"--{name}", type=int, default=usual)
    parser.add_argument("dsr", nargs="?", default="target/release/dsr")
    return parser.parse_args()


def run(args, folder, ranks, options):
    given = {"layers": args.layers, "width": args.width, "tokens": args.tokens, "steps": args.steps, **options}
    words = [word for name, value in given.items() for word in ("-p", f"{name}={value}")]
    command = ["launch", "--nproc-per-node", "2"] if ranks == 2 else ["run"]
    env = {**os.environ, "OMP_NUM_THREADS": str(2 // ranks)}
    program = [os.path.abspath(args.dsr), *command, "timed.rhai", "--device", "cpu", *words]
    subprocess.run(program, cwd=folder, check=True, capture_output=True, env=env)
    runs = os.path.join(folder, "runs")
    newest = max((os.path.join(runs, name) for name in os.listdir(runs)), key=os.path.getmtime)
    with open(os.path.join(newest, "metrics.jsonl")) as file:
        lines = [json.loads(line) for line in file]
    steps = [line for line in lines if "tokens_per_second" in line]
    times = [line["tokens"] / line["tokens_per_second"] for line in steps[1:]]
    return times, steps[-1]["loss"]


def main():
    args = arguments()
    times = {way: [] for way in WAYS}
    losses = {}
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "timed.rhai"), "w") as file:
            file.write(RECIPE)
        for _ in range(args.rounds):
            for way, (ranks, options) in WAYS.items():
                found, losses[way] = run(args, folder, ranks, options)
                times[way] += found
    first = statistics.median(next(iter(times.values())))
    print("| | s a step | beside the first | last loss |\n|---|---|---|---|")
    for way, found in times.items():
        middle = statistics.median(found)
        spread = f"{min(found):.2f}–{max(found):.2f}"
        print(f"| {way} | {middle:.2f} ({spread}) | {middle / first:.2f} | {losses[way]:.4f} |")


if __name__ == "__main__":
    main()
