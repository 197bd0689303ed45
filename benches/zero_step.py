"""Times a step of each of ZeRO's stages on two ranks of one thread, dsr and DeepSpeed in turns.

    benches/zero_step.sh --rounds 3 --steps 8
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
RANKS = 2


def command(side, stage, steps):
    if side == "dsr":
        dsr = str(ROOT / "target/release/dsr")
        return [dsr, "run", str(HERE / "zero_step.rhai"), "-p", f"stage={stage}", "-p", f"steps={steps}"]
    return [sys.executable, str(HERE / "zero_step_peer.py"), "--stage", str(stage), "--steps", str(steps)]


def run(side, stage, steps):
    """Seconds of each step after the first, and the larger peak memory of the ranks in MB."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with tempfile.TemporaryDirectory() as directory:
        def start(rank):
            env = os.environ | {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
            }
            errors = open(Path(directory) / f"errors-{rank}", "w+")
            return subprocess.Popen(command(side, stage, steps), env=env, cwd=directory,
                                    stdout=subprocess.PIPE, stderr=errors, text=True), errors

        started = [start(rank) for rank in range(RANKS)]
        drain = threading.Thread(target=lambda: started[1][0].stdout.read())
        drain.start()
        times = []
        for line in started[0][0].stdout:
            if line.startswith('{"step"') or line.startswith('{"loss"'):
                times.append((time.monotonic(), json.loads(line)["loss"]))
        drain.join()
        peak = 0
        for process, errors in started:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode != 0:
                errors.seek(0)
                sys.exit(f"{side}, stage {stage}: {errors.read()[-3000:]}")
            peak = max(peak, usage.ru_maxrss / 1024)
    between = [b[0] - a[0] for a, b in zip(times, times[1:])]
    return between, peak, times[-1][1]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    args = parser.parse_args()
    print("| stage | dsr, ms | DeepSpeed, ms | ratio | dsr, MB a rank | DeepSpeed, MB a rank | losses |")
    print("|---|---|---|---|---|---|---|")
    for stage in range(4):
        seconds, peaks, losses = {"dsr": [], "peer": []}, {}, {}
        for _ in range(args.rounds):
            for side in seconds:
                between, peaks[side], losses[side] = run(side, stage, args.steps)
                seconds[side] += between
        ms = {side: 1000 * statistics.median(all_) for side, all_ in seconds.items()}
        spread = {side: f"{1000 * min(s):.0f}–{1000 * max(s):.0f}" for side, s in seconds.items()}
        print(f"| {stage} | {ms['dsr']:.0f} ({spread['dsr']}) | {ms['peer']:.0f} ({spread['peer']}) "
              f"| {ms['dsr'] / ms['peer']:.2f} | {peaks['dsr']:.0f} | {peaks['peer']:.0f} "
              f"| {losses['dsr']:.2f}, {losses['peer']:.2f} |", flush=True)


main()
