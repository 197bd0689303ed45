"""Fine-tunes GPT-2 medium on one percent of WikiText-2 with DeepSpeed.

    deepspeed train_gpt2_ds.py --steps 50
"""

import argparse

import deepspeed
import torch
from datasets import load_dataset
from transformers import GPT2LMHeadModel, GPT2TokenizerFast

parser = argparse.ArgumentParser()
parser.add_argument("--model", default="openai-community/gpt2-medium")
parser.add_argument("--steps", type=int, default=50)
parser.add_argument("--lr", type=float, default=5e-5)
parser.add_argument("--deepspeed_config", default="ds_config.json")
parser.add_argument("--local_rank", type=int, default=-1)
args = parser.parse_args()

deepspeed.init_distributed()
torch.manual_seed(42)

# Tokenizer. GPT-2 has no padding token; the end-of-text token takes its place.
tokenizer = GPT2TokenizerFast.from_pretrained(args.model)
tokenizer.pad_token = tokenizer.eos_token

# Data: rows of 128 tokens, padded. Padding is no target.
dataset = load_dataset("Salesforce/wikitext", "wikitext-2-raw-v1", split="train[:1%]")
dataset = dataset.filter(lambda row: row["text"].strip() != "")


def tokenize(rows):
    out = tokenizer(rows["text"], truncation=True, max_length=128, padding="max_length")
    out["labels"] = [
        [token if kept else -100 for token, kept in zip(ids, mask)]
        for ids, mask in zip(out["input_ids"], out["attention_mask"])
    ]
    return out


dataset = dataset.map(tokenize, batched=True, remove_columns=["text"])
dataset.set_format("torch")

# Model and engine.
model = GPT2LMHeadModel.from_pretrained(args.model)
optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
engine, _, loader, _ = deepspeed.initialize(
    model=model,
    optimizer=optimizer,
    training_data=dataset,
    config=args.deepspeed_config,
)

# Loop.
engine.train()
while engine.global_steps < args.steps:
    for batch in loader:
        batch = {name: tensor.to(engine.device) for name, tensor in batch.items()}
        loss = engine(**batch).loss
        engine.backward(loss)
        boundary = engine.is_gradient_accumulation_boundary()
        engine.step()
        if boundary and engine.global_steps % 10 == 0 and engine.global_rank == 0:
            print(f"step {engine.global_steps}  loss {loss.item():.4f}")
        if engine.global_steps == args.steps:
            break

# Checkpoint, and the weights for transformers.
engine.save_checkpoint("checkpoints")
if engine.global_rank == 0:
    model.save_pretrained("gpt2-ds")
    tokenizer.save_pretrained("gpt2-ds")
