"""The peer of dsr's benchmarks: the same training with transformers and PyTorch.

Modes, each in a process of its own:
  train    GPT-2 (124M) or a LLaMA of about that size from scratch on Austen, fp32: forward,
           backward, clipping, fused AdamW
  golden   load a small model directory, do one optimizer step; what counts is the time to get there
  sgemm    the largest fp32 matrix product rate of this machine, in GFLOP/s

One JSON line a step, {"step": n, "loss": x}, and a summary as the last line.
"""

import argparse
import itertools
import json
import os
import resource
import time
from pathlib import Path

import torch

AUSTEN = Path(__file__).parent.parent / "recipes" / "data"


def since_process_start():
    """Seconds since the kernel started this process, interpreter and imports included."""
    ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def peak_rss_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def say(**values):
    print(json.dumps(values), flush=True)


def austen_rows(seq_len):
    """The training novels as rows of exactly seq_len tokens, paragraphs joined by <|endoftext|>."""
    import pyarrow.parquet as pq
    from tokenizers import Tokenizer

    texts = pq.read_table(AUSTEN / "austen" / "train.parquet")["text"].to_pylist()
    tokenizer = Tokenizer.from_file(str(AUSTEN / "gpt2" / "tokenizer.json"))
    end = tokenizer.token_to_id("<|endoftext|>")
    ids = [i for e in tokenizer.encode_batch(texts) for i in (*e.ids, end)]
    whole = len(ids) // seq_len * seq_len
    return torch.tensor(ids[:whole]).view(-1, seq_len)


def step(model, optimizer, micro_batches):
    """One optimizer step; returns the mean loss."""
    total = 0.0
    for rows in micro_batches:
        loss = model(input_ids=rows, labels=rows).loss / len(micro_batches)
        loss.backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total


def model_of(args):
    model = whole_model_of(args)
    if args.lora == 0:
        return model
    from peft import LoraConfig, get_peft_model

    options = dict(r=args.lora, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, LoraConfig(**options))


def whole_model_of(args):
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    if args.family == "gpt2":
        # transformers' defaults are GPT-2's 124M; its three dropouts are set together.
        p = args.dropout
        return GPT2LMHeadModel(GPT2Config(embd_pdrop=p, attn_pdrop=p, resid_pdrop=p))
    sizes = dict(vocab_size=50257, max_position_embeddings=1024, hidden_size=768)
    layers = dict(num_hidden_layers=12, num_attention_heads=12, num_key_value_heads=4)
    config = LlamaConfig(**sizes, **layers, intermediate_size=2304, tie_word_embeddings=True)
    return LlamaForCausalLM(config)


def train(args):
    torch.manual_seed(0)
    model = model_of(args).train()
    trained = [param for param in model.parameters() if param.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=6e-4, weight_decay=0.1, fused=True)
    rows = itertools.cycle(austen_rows(args.seq_len).split(args.micro_batch_size))
    losses, first, began = [], None, None
    for n in range(args.warmup + args.steps):
        if n == args.warmup:
            began = time.perf_counter()
        losses.append(step(model, optimizer, [next(rows)]))
        first = first or since_process_start()
        say(step=n + 1, loss=losses[-1])
    tokens = args.steps * args.micro_batch_size * args.seq_len
    say(
        tokens_per_s=tokens / (time.perf_counter() - began),
        peak_rss_mb=peak_rss_mb(),
        first_step_s=first,
        losses=losses,
    )


def golden(args):
    import pyarrow.parquet as pq
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(args.dir / "gpt2-tiny-v512").train()
    rows = pq.read_table(args.dir / "tokens-v512.parquet")["input_ids"].to_pylist()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=5e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    loss = step(model, optimizer, torch.tensor(rows[:8]).split(2))
    first = since_process_start()
    say(step=1, loss=loss)
    say(first_step_s=first, peak_rss_mb=peak_rss_mb(), losses=[loss])


def sgemm(args):
    n, best = 4096, float("inf")
    a, b, out = (torch.rand(n, n) for _ in range(3))
    for _ in range(6):
        began = time.perf_counter()
        torch.mm(a, b, out=out)
        best = min(best, time.perf_counter() - began)
    say(gflops=2 * n**3 / best / 1e9)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    modes = parser.add_subparsers(dest="mode", required=True)
    mode = modes.add_parser("train")
    mode.add_argument("--steps", type=int, default=5)
    mode.add_argument("--warmup", type=int, default=1)
    mode.add_argument("--micro-batch-size", type=int, default=4)
    mode.add_argument("--seq-len", type=int, default=256)
    mode.add_argument("--dropout", type=float, default=0.1)
    mode.add_argument("--family", default="gpt2")
    mode.add_argument("--lora", type=int, default=0)
    mode.set_defaults(run=train)
    mode = modes.add_parser("golden")
    mode.add_argument("dir", type=Path)
    mode.set_defaults(run=golden)
    modes.add_parser("sgemm").set_defaults(run=sgemm)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.run(args)


if __name__ == "__main__":
    main()
