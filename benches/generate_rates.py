#!/usr/bin/env python3
"""How the cost of a token grows in a long text, and what is lost where many prompts wait for slots.
Needs no peer. See benches/README.md.

    ./benches/generate_rates.py --rounds 3
"""

import argparse
import json
import os
import subprocess

from generate import DSR, ROOT, WORK, prepare_models


def run(**given):
    words = [word for key, value in given.items() for word in ("-p", f"{key}={value}")]
    recipe = ROOT / "benches" / "generate_rates.rhai"
    out = subprocess.run([DSR, "run", recipe, *words], cwd=WORK, check=True, capture_output=True)
    return json.loads(out.stdout.decode().splitlines()[-1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="gpt2")
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=64)
    args = parser.parse_args()
    prepare_models()
    shares = {"long": [], "queue": []}
    for _ in range(args.rounds):
        long = run(model=args.model, kind="long")
        shares["long"].append(long["first_ms"] / long["last_ms"])
        print(f"1,000 tokens: {long['first_ms']:.1f} ms each of the first hundred, "
              f"{long['last_ms']:.1f} of the last; {shares['long'][-1]:.2f} of the speed")
        queue = run(
            model=args.model, kind="queue", prompts=args.prompts, new_tokens=args.new_tokens
        )
        shares["queue"].append(queue["queue"] / queue["batch"])
        print(f"{args.prompts} prompts: {queue['queue']:.1f} tokens/s through 16 slots, "
              f"{queue['batch']:.1f} of one full batch; {shares['queue'][-1]:.2f} of it")
    best = {key: max(found) for key, found in shares.items()}
    print(f"best of {args.rounds}, load {os.getloadavg()[0]:.2f}: long {best['long']:.2f} (goal 0.85), "
          f"queue {best['queue']:.2f} (goal 0.90)")


if __name__ == "__main__":
    main()
