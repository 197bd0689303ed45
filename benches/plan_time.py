"""The time that `dsr plan` estimates beside the time that a run takes, on this machine.

    python3 benches/plan_time.py [DSR]

Each case is planned and run in turns, alone; the time of a run is the median of its steps after the
first, from `metrics.jsonl`. Plans and runs have as many threads as OMP_NUM_THREADS says.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile

DSR = os.path.abspath(sys.argv[1] if len(sys.argv) > 1 else "target/release/dsr")
STEPS = 5

RECIPE = """
param("precision", "fp32", "the format");
param("layers", 6, "blocks");
param("width", 512, "columns");
param("rows", 4, "rows of a micro batch");
param("tokens", 256, "tokens of a row");
param("checkpointing", false, "whether blocks are computed again");
let rows = dataset("dsr:austen", #{ split: "validation" }).tokenize(tokenizer("dsr:gpt2")).pack(P::tokens);
let model = new_model("gpt2", #{
    n_layer: P::layers, n_embd: P::width, n_head: P::width / 64, n_positions: P::tokens,
});
let engine = init_engine(model, #{
    micro_batch_size: P::rows, precision: P::precision, activation_checkpointing: P::checkpointing,
});
let run = start_run(engine, rows.loader(#{ micro_batch_size: P::rows, endless: true }), #{
    total_steps: STEPS, name: "timed",
});
while run.train_batch() {}
""".replace("STEPS", str(STEPS))

CASES = [
    {},
    {"precision": "bf16"},
    {"checkpointing": "true"},
    {"layers": 2, "width": 128, "rows": 8, "tokens": 64},
    {"layers": 12, "width": 768, "rows": 1, "tokens": 512},
]


def dsr(folder, *words):
    done = subprocess.run([DSR, *words], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout


def measured(folder, given):
    dsr(folder, "run", "timed.rhai", "--device", "cpu", *given)
    runs = os.path.join(folder, "runs")
    newest = max((os.path.join(runs, name) for name in os.listdir(runs)), key=os.path.getmtime)
    with open(os.path.join(newest, "metrics.jsonl")) as file:
        lines = [json.loads(line) for line in file]
    steps = [line for line in lines if "tokens_per_second" in line]
    return statistics.median(line["tokens"] / line["tokens_per_second"] for line in steps[1:])


def main():
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "timed.rhai"), "w") as file:
            file.write(RECIPE)
        print("| case | planned, s | measured, s | planned / measured |\n|---|---|---|---|")
        for case in CASES:
            given = [word for name, value in case.items() for word in ("-p", f"{name}={value}")]
            plan = json.loads(dsr(folder, "plan", "timed.rhai", "--device", "cpu", "--json", *given))
            planned = plan["recipe"]["step_seconds"]
            found = measured(folder, given)
            name = ", ".join(f"{key} {value}" for key, value in case.items()) or "as it is"
            print(f"| {name} | {planned:.2f} | {found:.2f} | {planned / found:.2f} |", flush=True)


if __name__ == "__main__":
    main()
