"""Whether peft gives an adapter that dsr exported the logits that dsr gives it.

    python3 tests/golden/adapters/loads_in_peft.py target/release/dsr

Each golden adapter is loaded by dsr, trained for two steps and exported; the base with the export in peft must then
have dsr's logits to 1e-5.
"""

import json
import os
import subprocess
import sys
import tempfile

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

HERE = os.path.dirname(os.path.abspath(__file__))
DSR = os.path.abspath(sys.argv[1])
IDS = [[1, 7, 300, 4, 4, 90, 511, 12]]

RECIPE = """
param("base", "", "directory of the base");
param("adapter", "", "directory of the adapter");
param("data", "", "Parquet file with token rows");
let model = load_model(P::base);
model.load_adapter(P::adapter);
let engine = init_engine(model, #{ micro_batch_size: 2, optimizer: #{ lr: 1e-2 } });
let loader = dataset(P::data).loader(#{ micro_batch_size: 2 });
for i in 0..2 { engine.train_batch(loader); }
engine.model.export_adapter("adapter");
print(engine.model.logits(tensor(IDS)).to_array().to_json());
""".replace("IDS", str(IDS))


def check(name):
    base = "gpt2-tiny-v512" if name.startswith("gpt2") else "families/llama-gqa"
    golden = os.path.dirname(HERE)
    given = {
        "base": os.path.join(golden, base),
        "adapter": os.path.join(HERE, f"{name}.init"),
        "data": os.path.join(golden, "tokens-v512.parquet"),
    }
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "r.rhai"), "w") as file:
            file.write(RECIPE)
        words = [word for key, value in given.items() for word in ("-p", f"{key}={value}")]
        command = [DSR, "run", "r.rhai", "--device", "cpu", *words]
        done = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
        ours = torch.tensor(json.loads(done.stdout.splitlines()[-1]))
        model = AutoModelForCausalLM.from_pretrained(given["base"], attn_implementation="eager")
        model = PeftModel.from_pretrained(model, os.path.join(folder, "adapter")).eval()
        with torch.no_grad():
            theirs = model(torch.tensor(IDS)).logits
    difference = (ours - theirs).abs().max().item()
    print(f"{name:16} {difference:.2e}")
    return difference < 1e-5


def main():
    names = sorted(name[: -len(".init")] for name in os.listdir(HERE) if name.endswith(".init"))
    if not all([check(name) for name in names]):
        sys.exit("the logits differ")


main()
