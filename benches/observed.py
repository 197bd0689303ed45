"""What a run's files and a watching `dsr watch` cost in a step, and what `dsr watch` itself takes.

    python3 benches/observed.py [--dsr DSR] [--rounds N] [--steps N] [--model DIR] [--data FILE]

The same steps in turns: bare (`engine.train_batch` in a loop), as a run (header, metrics.jsonl, output.log,
loss.svg, CSV, TensorBoard), and as a run that `dsr watch` looks at from a terminal of its own. The time is
taken outside, from the arrival of two lines. Then `dsr watch` opens a run of 100,000 steps that was made up: the
time to its first screen, and its share of a core in the seconds after.
"""

import argparse
import contextlib
import fcntl
import json
import os
import pty
import select
import shutil
import signal
import statistics
import struct
import subprocess
import tempfile
import termios
import time

HERE = os.path.dirname(os.path.abspath(__file__))
GOLDEN = os.path.join(HERE, "../tests/golden")
# Until the older part of a long run is read.
SETTLES = 120
LATER = 30


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--dsr", default=os.path.join(HERE, "../target/release/dsr"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--model", default=os.path.join(GOLDEN, "gpt2-tiny-v512"))
    parser.add_argument("--data", default=os.path.join(GOLDEN, "tokens-v512.parquet"))
    args = parser.parse_args()
    args.dsr, args.model, args.data = map(os.path.abspath, (args.dsr, args.model, args.data))
    return args


class Screen:
    """`dsr watch` in a pseudo-terminal."""

    def __init__(self, dsr, run, folder):
        self.started = time.monotonic()
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.environ["TERM"] = "xterm-256color"
            os.execv(dsr, [dsr, "watch", run])
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))

    def read(self, seconds, until=None):
        """Reads for some seconds, or until these bytes have come; returns when they came."""
        seen, end = b"", time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if not select.select([self.terminal], [], [], left)[0]:
                break
            try:
                seen += os.read(self.terminal, 65536)
            except OSError:
                # It has ended.
                break
            if until is not None and until in seen:
                return time.monotonic() - self.started
        return None

    def processor_seconds(self):
        with open(f"/proc/{self.pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self):
        with contextlib.suppress(OSError):
            os.write(self.terminal, b"q")
        self.read(2)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.terminal)


def step_time(args, folder, observed, watched):
    """Seconds of a step."""
    begin = args.steps // 6
    given = {"model": args.model, "data": args.data, "steps": args.steps, "from": begin}
    given["observed"] = str(observed).lower()
    words = [word for name, value in given.items() for word in ("-p", f"{name}={value}")]
    recipe = os.path.join(HERE, "observed.rhai")
    command = [args.dsr, "run", recipe, "--device", "cpu", f"--allow-read={os.path.dirname(GOLDEN)}", *words]
    shutil.rmtree(os.path.join(folder, "runs"), ignore_errors=True)
    run = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    times, screen = {}, None
    try:
        for line in run.stdout:
            if not line.startswith('{"step"'):
                continue
            times[json.loads(line)["step"]] = time.monotonic()
            if watched and screen is None:
                screen = Screen(args.dsr, "observed", folder)
    finally:
        if screen is not None:
            screen.close()
    if run.wait() != 0:
        raise SystemExit(f"{' '.join(command)} ended with {run.returncode}")
    return (times[args.steps] - times[begin]) / (args.steps - begin)


def costs(args, folder):
    modes = {"bare": (False, False), "run": (True, False), "watched run": (True, True)}
    times = {name: [] for name in modes}
    for _ in range(args.rounds):
        for name, (observed, watched) in modes.items():
            times[name].append(step_time(args, folder, observed, watched))
    bare = times["bare"]
    for name, found in times.items():
        ratios = [100 * (one / other - 1) for one, other in zip(found, bare)]
        spread = f"{min(ratios):+.1f} to {max(ratios):+.1f}"
        print(f"{name:12} {1e3 * statistics.median(found):8.3f} ms a step  "
              f"{statistics.median(ratios):+5.1f} % ({spread})")


def long_run(folder, steps):
    run = os.path.join(folder, "runs/long")
    os.makedirs(run)
    told = {"name": "long", "number": 1, "status": "running", "total_steps": 2 * steps,
            "started_at": "2026-01-01T00:00:00Z", "device": "cpu", "precision": "fp32", "world_size": 1}
    with open(os.path.join(run, "run.json"), "w") as file:
        json.dump(told, file)
    with open(os.path.join(run, "metrics.jsonl"), "w") as file:
        for step in range(1, steps + 1):
            line = {"step": step, "loss": 2 + 4 / (1 + step / 400), "lr": 3e-4, "grad_norm": 1.0,
                    "tokens": 8192, "tokens_per_second": 52000 + step % 50, "resident_bytes": 2 * 10**9}
            file.write(json.dumps(line) + "\n")


def watching(args, folder, steps=100_000):
    long_run(folder, steps)
    starts, firsts = [], []
    for _ in range(args.rounds):
        started = time.monotonic()
        subprocess.run([args.dsr, "--version"], check=True, stdout=subprocess.DEVNULL)
        starts.append(time.monotonic() - started)
        screen = Screen(args.dsr, "long", folder)
        firsts.append(screen.read(20, until=b"loss"))
        screen.close()
    print(f"watch of {steps:,} steps: first screen after {statistics.median(firsts):.3f} s "
          f"({min(firsts):.3f} to {max(firsts):.3f}), dsr --version takes {statistics.median(starts):.3f} s")
    screen = Screen(args.dsr, "long", folder)
    for seconds, name in ((SETTLES, "at first"), (LATER, "afterwards")):
        before = screen.processor_seconds()
        screen.read(seconds)
        share = 100 * (screen.processor_seconds() - before) / seconds
        print(f"  {name}: {share:.1f} % of a core in {seconds} s")
    screen.close()


def main():
    args = arguments()
    with tempfile.TemporaryDirectory() as folder:
        costs(args, folder)
    with tempfile.TemporaryDirectory() as folder:
        watching(args, folder)


main()
