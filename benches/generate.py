"""dsr, CTranslate2 and transformers generate from the same weights in turns, and a table shows how long
the first token and each further one take. See benches/README.md.

    ./benches/generate.sh --rounds 3
"""

import argparse
import json
import os
import random
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "target" / "generate"
DSR = ROOT / "target" / "release" / "dsr"
MODELS = {"gpt2": 50257, "smollm2-135m": 49152}
PROMPT_TOKENS = 64


def prepare_models():
    """The models as dsr exports them with random weights, and a tokenizer of numbers."""
    WORK.mkdir(parents=True, exist_ok=True)
    for name in MODELS:
        if (WORK / name).is_dir():
            continue
        recipe = WORK / "export.rhai"
        recipe.write_text(f'new_model("{name}", #{{ seed: 1 }}).export_hf("{name}");\n')
        subprocess.run([DSR, "run", "export.rhai"], cwd=WORK, check=True)
    most = max(MODELS.values())
    numbers = WORK / "numbers"
    numbers.mkdir(exist_ok=True)
    words = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": {str(i): i for i in range(most)}, "unk_token": "0"},
    }
    (numbers / "tokenizer.json").write_text(json.dumps(words))


def prepare():
    """The models, also in CTranslate2's format."""
    prepare_models()
    for name, vocab in MODELS.items():
        out = WORK / f"ct2-{name}"
        if not (out / "model.bin").exists():
            convert(name, vocab, out)


def convert(name, vocab, out):
    import numpy as np
    from ctranslate2.specs import common_spec, transformer_spec
    from safetensors.numpy import load_file

    weights = load_file(WORK / name / "model.safetensors")
    make = transformer_spec.TransformerDecoderModelSpec.from_config
    if name == "gpt2":
        get = lambda key: weights.get(key, weights.get("transformer." + key))
        spec = make(12, 12, pre_norm=True, activation=common_spec.Activation.GELUTanh)
        decoder = spec.decoder
        decoder.embeddings.weight, decoder.projection.weight = get("wte.weight"), get("wte.weight")
        decoder.position_encodings.encodings = get("wpe.weight")

        def norm(layer, key):
            layer.gamma, layer.beta = get(key + ".weight"), get(key + ".bias")

        def linear(layer, key):
            layer.weight = np.ascontiguousarray(get(key + ".weight").T)
            layer.bias = get(key + ".bias")

        norm(decoder.layer_norm, "ln_f")
        for i, layer in enumerate(decoder.layer):
            norm(layer.self_attention.layer_norm, f"h.{i}.ln_1")
            linear(layer.self_attention.linear[0], f"h.{i}.attn.c_attn")
            linear(layer.self_attention.linear[1], f"h.{i}.attn.c_proj")
            norm(layer.ffn.layer_norm, f"h.{i}.ln_2")
            linear(layer.ffn.linear_0, f"h.{i}.mlp.c_fc")
            linear(layer.ffn.linear_1, f"h.{i}.mlp.c_proj")
    else:
        config = json.loads((WORK / name / "config.json").read_text())
        get = lambda key: weights["model." + key]
        spec = make(
            config["num_hidden_layers"], config["num_attention_heads"], pre_norm=True,
            activation=common_spec.Activation.SWISH, ffn_glu=True, rms_norm=True, rotary_dim=0,
            rotary_interleave=False, rotary_base=config["rope_theta"],
            num_heads_kv=config["num_key_value_heads"],
        )
        decoder = spec.decoder
        tokens = get("embed_tokens.weight")
        decoder.embeddings.weight, decoder.projection.weight = tokens, tokens
        decoder.layer_norm.gamma = get("norm.weight")
        for i, layer in enumerate(decoder.layer):
            key = f"layers.{i}."
            attention, mlp = layer.self_attention, layer.ffn
            attention.layer_norm.gamma = get(key + "input_layernorm.weight")
            mlp.layer_norm.gamma = get(key + "post_attention_layernorm.weight")
            parts = [get(f"{key}self_attn.{part}_proj.weight") for part in "qkv"]
            attention.linear[0].weight = np.concatenate(parts)
            attention.linear[1].weight = get(key + "self_attn.o_proj.weight")
            mlp.linear_0.weight = get(key + "mlp.gate_proj.weight")
            mlp.linear_0_noact.weight = get(key + "mlp.up_proj.weight")
            mlp.linear_1.weight = get(key + "mlp.down_proj.weight")
    decoder.scale_embeddings = False
    spec.register_vocabulary([f"t{i}" for i in range(vocab)])
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = "t0"
    spec.validate()
    spec.optimize(quantization=None)
    out.mkdir(exist_ok=True)
    spec.save(str(out))


def prompts(name, batch):
    draw = random.Random(batch)
    return [[draw.randrange(1, MODELS[name]) for _ in range(PROMPT_TOKENS)] for _ in range(batch)]


def of_dsr(name, batch, new, quantize=""):
    texts = [" ".join(map(str, row)) for row in prompts(name, batch)]
    given = {"model": name, "prompts": json.dumps(texts), "new_tokens": new, "quantize": quantize}
    words = [word for key, value in given.items() for word in ("-p", f"{key}={value}")]
    recipe = ROOT / "benches" / "generate.rhai"
    out = subprocess.run([DSR, "run", recipe, *words], cwd=WORK, check=True, capture_output=True)
    times = json.loads(out.stdout.decode().splitlines()[-1])
    return times["first_ms"], times["step_ms"]


def difference(generate, new):
    """Milliseconds of the first token and of each further one."""
    generate(2)
    start = time.perf_counter()
    generate(1)
    first = time.perf_counter() - start
    start = time.perf_counter()
    generate(new)
    return first * 1e3, (time.perf_counter() - start - first) / (new - 1) * 1e3


def of_ctranslate2(name, batch, new, compute_type="float32"):
    import ctranslate2

    threads = len(os.sched_getaffinity(0))
    path = str(WORK / f"ct2-{name}")
    generator = ctranslate2.Generator(path, device="cpu", intra_threads=threads, compute_type=compute_type)
    rows = [[f"t{token}" for token in row] for row in prompts(name, batch)]
    return difference(
        lambda count: generator.generate_batch(
            rows, max_length=count, min_length=count, sampling_topk=1, include_prompt_in_result=False
        ),
        new,
    )


def of_transformers(name, batch, new):
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = AutoModelForCausalLM.from_pretrained(WORK / name, dtype=torch.float32)
    rows = torch.tensor(prompts(name, batch))
    mask = torch.ones_like(rows)
    with torch.inference_mode():
        return difference(
            lambda count: model.generate(
                rows, attention_mask=mask, max_new_tokens=count, min_new_tokens=count,
                do_sample=False, pad_token_id=0,
            ),
            new,
        )


ENGINES = {
    "dsr": of_dsr,
    "dsr int8": lambda *args: of_dsr(*args, quantize="int8"),
    "dsr nf4": lambda *args: of_dsr(*args, quantize="nf4"),
    "CTranslate2": of_ctranslate2,
    "CTranslate2 int8": lambda *args: of_ctranslate2(*args, compute_type="int8"),
    "transformers": of_transformers,
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--models", default=",".join(MODELS))
    args = parser.parse_args()
    prepare()
    best = {}
    for _ in range(args.rounds):
        for name in args.models.split(","):
            for batch in (1, 16):
                for engine in args.engines.split(","):
                    found = ENGINES[engine](name, batch, args.new_tokens)
                    key = (name, batch, engine)
                    best[key] = tuple(map(min, zip(best.get(key, found), found)))
    print(f"{PROMPT_TOKENS} prompt tokens, {args.new_tokens} new ones, best of {args.rounds}, "
          f"load {os.getloadavg()[0]:.2f}\n")
    print("| model | batch | engine | first token, ms | step, ms | tokens/s |\n|---|---|---|---|---|---|")
    for (name, batch, engine), (first, step) in best.items():
        print(f"| {name} | {batch} | {engine} | {first:.1f} | {step:.2f} | {batch / step * 1e3:.1f} |")


if __name__ == "__main__":
    main()
