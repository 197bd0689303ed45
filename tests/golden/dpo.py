"""Computes dpo.json and writes dpo-pairs.jsonl: ten steps of direct preference optimization.

GPT-2 of gpt2-tiny-v512 with the LoRA adapter of adapters/gpt2-cattn.init, in PyTorch alone. Run in this
folder with torch, transformers, safetensors and pyarrow."""

import json

import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import GPT2LMHeadModel

BETA, LR, PAIRS, STEPS, ALPHA_OVER_R = 0.1, 5e-3, 4, 10, 8 / 4

torch.set_num_threads(1)
rows = pq.read_table("tokens-v512.parquet")["input_ids"].to_pylist()
pairs = []
for i in range(PAIRS * STEPS):
    prompt = rows[i][:8]
    for answer in (rows[i][8:24], rows[i + 200][40:56]):
        pairs.append({"input_ids": prompt + answer, "labels": [-100] * 8 + answer})
with open("dpo-pairs.jsonl", "w") as file:
    file.writelines(json.dumps(pair) + "\n" for pair in pairs)


class Lora(torch.nn.Module):
    def __init__(self, base, a, b):
        super().__init__()
        self.base, self.a, self.b = base, torch.nn.Parameter(a), torch.nn.Parameter(b)
        self.scale = ALPHA_OVER_R

    def forward(self, x):
        return self.base(x) + self.scale * (x @ self.a.T @ self.b.T)


model = GPT2LMHeadModel.from_pretrained("gpt2-tiny-v512", attn_implementation="eager")
model.requires_grad_(False)
adapter = load_file("adapters/gpt2-cattn.init/adapter_model.safetensors")
layers = []
for i, block in enumerate(model.transformer.h):
    name = f"base_model.model.transformer.h.{i}.attn.c_attn.lora_"
    block.attn.c_attn = Lora(block.attn.c_attn, adapter[name + "A.weight"], adapter[name + "B.weight"])
    layers.append(block.attn.c_attn)


def log_probs(ids, labels):
    each = F.log_softmax(model(ids).logits[:, :-1], -1)
    labels = labels[:, 1:]
    kept = labels != -100
    return (each.gather(-1, (labels * kept).unsqueeze(-1)).squeeze(-1) * kept).sum(-1)


optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR, weight_decay=0.0)
found = {"losses": [], "margins": [], "accuracies": []}
for step in range(STEPS):
    batch = pairs[step * 2 * PAIRS : (step + 1) * 2 * PAIRS]
    ids = torch.tensor([row["input_ids"] for row in batch])
    labels = torch.tensor([row["labels"] for row in batch])
    for layer in layers:
        layer.scale = 0.0
    with torch.no_grad():
        reference = log_probs(ids, labels)
    for layer in layers:
        layer.scale = ALPHA_OVER_R
    ratios = log_probs(ids, labels) - reference
    margins = BETA * (ratios[0::2] - ratios[1::2])
    loss = -F.logsigmoid(margins).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    found["losses"].append(loss.item())
    found["margins"].append(margins.mean().item())
    found["accuracies"].append((margins > 0).float().mean().item())
with open("dpo.json", "w") as file:
    json.dump(found, file)
print(found)
