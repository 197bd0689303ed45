"""dsr and Hugging Face's datasets read the same files in turns, and tokenizers' Python binding and dsr
turn the same prose into token ids; a table shows seconds and memory. See benches/README.md.

    ./benches/data.sh --megabytes 1000
"""

import argparse
import csv
import json
import os
import random
import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "target" / "data"
DSR = Path(os.environ.get("DSR", ROOT / "target" / "release" / "dsr"))

# A process of its own, so that its memory is its own: reads as load_dataset does, without its cache.
READ = """
import json, resource, sys, time, datasets
datasets.disable_progress_bars()
kind, file, cache = sys.argv[1:]
start = time.perf_counter()
rows = datasets.load_dataset(kind, data_files=file, split="train", cache_dir=cache)
count = total = 0
for batch in rows.with_format("arrow").iter(batch_size=1024):
    count += len(batch)
    total += sum(len(text.as_buffer()) for text in batch["text"])
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
print(json.dumps(dict(rows=count, bytes=total, seconds=seconds, peak_mib=peak)))
"""

TOKENIZE = """
import json, sys, time
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[1])
texts = [json.loads(line)["text"] for line in open(sys.argv[2])]
start = time.perf_counter()
ids = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
print(json.dumps(dict(seconds=time.perf_counter() - start, tokens=sum(len(i.ids) for i in ids))))
"""


def prose():
    """Paragraphs of the novels in the binary."""
    code = 'for r in dataset("dsr:austen") { print(r.text); print(""); }'
    text = subprocess.run([DSR, "eval", code], check=True, capture_output=True, text=True).stdout
    return [p.strip() for p in re.split(r"\n\s*\n", text) if len(p.strip()) > 40]


def prepare(megabytes):
    WORK.mkdir(parents=True, exist_ok=True)
    files = {kind: WORK / f"{megabytes}.{end}" for kind, end in
             [("json", "jsonl"), ("csv", "csv"), ("parquet", "parquet")]}
    if all(file.exists() for file in files.values()):
        return files
    import pyarrow as pa
    import pyarrow.parquet as pq

    paragraphs, chance = prose(), random.Random(1)
    rows = {"id": [], "text": []}
    size = 0
    with open(files["json"], "w") as lines, open(files["csv"], "w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["id", "text"])
        schema = pa.schema([("id", pa.int64()), ("text", pa.string())])
        with pq.ParquetWriter(files["parquet"], schema, compression="gzip") as parquet:
            for i in range(10**9):
                text = "\n".join(chance.choices(paragraphs, k=4))
                lines.write(json.dumps({"id": i, "text": text}) + "\n")
                writer.writerow([i, text])
                rows["id"].append(i)
                rows["text"].append(text)
                size += len(text)
                done = size >= megabytes * 10**6
                if done or len(rows["id"]) == 10_000:
                    parquet.write_table(pa.table(rows, schema=schema))
                    rows = {"id": [], "text": []}
                if done:
                    return files


def run(command, **more):
    out = subprocess.run(command, check=True, capture_output=True, text=True, **more).stdout
    return json.loads(out.strip().splitlines()[-1])


def read(python, bench, rounds, files):
    print(f"{'file':10} {'size':>8} {'dsr':>9} {'datasets':>9} {'ratio':>6} {'memory':>18}")
    for kind, file in files.items():
        ours, theirs = [], []
        for _ in range(rounds):
            ours.append(run([bench, file]))
            cache = WORK / "cache"
            shutil.rmtree(cache, ignore_errors=True)
            theirs.append(run([python, "-c", READ, kind, file, cache]))
            shutil.rmtree(cache, ignore_errors=True)
        assert ours[0]["rows"] == theirs[0]["rows"] and ours[0]["bytes"] == theirs[0]["bytes"]
        best = [min(run["seconds"] for run in side) for side in (ours, theirs)]
        peak = [max(run["peak_mib"] for run in side) for side in (ours, theirs)]
        size = file.stat().st_size / 1e6
        print(f"{kind:10} {size:5.0f} MB {best[0]:7.2f} s {best[1]:7.2f} s {best[1] / best[0]:6.2f}"
              f" {peak[0]:6} / {peak[1]:5} MiB")


def tokenize(python, rounds):
    file = WORK / "4mb.jsonl"
    if not file.exists():
        paragraphs, chance, size = prose(), random.Random(2), 0
        with open(file, "w") as lines:
            while size < 4 * 10**6:
                text = "\n".join(chance.choices(paragraphs, k=4))
                lines.write(json.dumps({"text": text}) + "\n")
                size += len(text)
    recipe = WORK / "tokenize.rhai"
    recipe.write_text(f"""let ds = dataset("{file.name}").tokenize(tokenizer("dsr:gpt2"));
let start = timestamp();
let rows = ds.cache().count();
print(`{{"seconds": ${{start.elapsed}}, "rows": ${{rows}}}}`);
""")
    json_file = ROOT / "recipes" / "data" / "gpt2" / "tokenizer.json"
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(run([DSR, "run", recipe.name], cwd=WORK)["seconds"])
        theirs.append(run([python, "-c", TOKENIZE, json_file, file])["seconds"])
    print(f"tokenize 4 MB of prose: dsr {min(ours):.2f} s, tokenizers {min(theirs):.2f} s")


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--megabytes", type=int, default=1000)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--bench", required=True, help="the program of benches/read_data.rs")
    chosen = arguments.parse_args()
    python = ROOT / "target" / "bench-venv" / "bin" / "python"
    tokenize(python, chosen.rounds)
    read(python, chosen.bench, chosen.rounds, prepare(chosen.megabytes))


if __name__ == "__main__":
    main()
