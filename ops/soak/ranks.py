#!/usr/bin/env python3
"""Ranks that are lost again and again, at any moment: the run must end with the very samples, in the very order, of one left
alone, and know the same of its shards.

    ops/soak/ranks.py [--minutes 10] [--ranks 2] [--seed 1] [--shoal target/release/shoal] [--folder FOLDER]

First a run is left alone. Then the same pipeline is started again and again, and each time one rank, by chance, gets SIGKILL, SIGSTOP or
SIGTERM at a moment by chance: also while the ranks meet, cluster, or write a snapshot. Whatever happens, all the others must end by
themselves within a minute, with exit code 4 and a rank's name, or 130 after SIGTERM; and when the time is over, the run is left to
end. Exit code 1, with the logs in FOLDER, unless all of it holds.
"""

import argparse
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = os.path.realpath(os.path.join(os.path.dirname(__file__), "..", ".."))
STEPS = 400
SETTINGS = [
    'stream.shards=["shards/photos-*.tar"]', "stream.lanes=2", "stream.shuffle=60", "views.size=32", "views.resize=36", "model.arch=small",
    "bank.capacity=144", "cluster.every_steps=12", "cluster.k=8", "cluster.pca=16", "train.batch_size=24", f"train.steps={STEPS}",
    "snapshot.every_steps=10", "snapshot.every_minutes=0", "observe.every_steps=1", "observe.tensorboard=false", "device.kind=cpu",
    "device.threads=1", "device.decode_threads=1", "ranks.timeout_s=15",
]  # fmt: skip
# How long the others may take to find out and end.
PATIENCE_S = 60


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(shoal, pipeline, run, ranks, logs):
    port = str(free_port())
    options = [part for setting in SETTINGS for part in ("--set", setting)]
    started = []
    for rank in range(ranks):
        environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(ranks),
                       "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_WAIT_POLICY": "PASSIVE"}  # fmt: skip
        log = open(os.path.join(logs, f"rank-{rank}.log"), "w")
        command = [shoal, "pretrain", pipeline, "--run", run, "--no-bar", *options]
        started.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log))
    return started


def ids(run):
    """The digest of what each step was trained on, of the last time that it was done."""
    found = {}
    path = os.path.join(run, "metrics.jsonl")
    if not os.path.exists(path):
        return found
    with open(path) as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue  # cut short by a kill
            if record["kind"] == "step":
                found[record["step"]] = record["ids"]
    return found


def indices(run):
    """The files of RUN/index: those of shards that were read from their beginning to their end."""
    found = {}
    for folder, _, files in os.walk(os.path.join(run, "index")):
        for name in files:
            if name.endswith(".arrow"):
                path = os.path.join(folder, name)
                with open(path, "rb") as file:
                    found[os.path.relpath(path, run)] = file.read()
    return found


def disturb(processes, chance, longest):
    """What one rank got, and when, or None where all were through before."""
    delay = chance.uniform(0, longest)
    victim = chance.randrange(len(processes))
    what = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
    deadline = time.monotonic() + delay
    while time.monotonic() < deadline:
        if all(process.poll() is not None for process in processes):
            return None
        time.sleep(0.02)
    processes[victim].send_signal(what)
    return victim, what, delay


def ended(processes, disturbed, logs):
    """Why it did not end as it should; None if it did."""
    victim, what, _ = disturbed or (None, None, None)
    deadline = time.monotonic() + PATIENCE_S
    for rank, process in enumerate(processes):
        if rank == victim and what == signal.SIGSTOP:
            continue
        try:
            code = process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return f"rank {rank} goes on"
        if rank == victim and what == signal.SIGKILL or code == 0:
            continue
        with open(os.path.join(logs, f"rank-{rank}.log")) as file:
            text = file.read()
        # before it heeds SIGTERM a rank is ended by it, and then is a loss to the others
        expected = {4, 130} if what == signal.SIGTERM else {4}
        expected |= {-signal.SIGTERM} if what == signal.SIGTERM and rank == victim else set()
        named = re.search(rf"error: .*ranks? [\d, and]*\b{victim}\b", text) or rank == victim
        if code not in expected or code == 4 and not named:
            return f"rank {rank} ended with {code}"
    if what == signal.SIGSTOP:
        processes[victim].kill()
        processes[victim].wait()
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--shoal", default=os.path.join(ROOT, "target/release/shoal"))
    parser.add_argument("--folder")
    arguments = parser.parse_args()
    folder = arguments.folder or tempfile.mkdtemp(prefix="shoal-ranks.")
    pipeline = os.path.join(folder, "pipeline.toml")
    os.makedirs(folder, exist_ok=True)
    with open(pipeline, "w") as file:
        file.write("[stream]\nshards = []\n")
    alone, run = os.path.join(folder, "alone"), os.path.join(folder, "run")
    started = time.monotonic()
    code = [process.wait() for process in start(arguments.shoal, pipeline, alone, arguments.ranks, folder)]
    whole = time.monotonic() - started
    if any(code):
        sys.exit(f"left alone it ended with {code}: see {folder}")
    print(f"left alone: {STEPS} steps in {whole:.0f} s, in {folder}", flush=True)
    chance = random.Random(arguments.seed)
    counts, rounds, ends = {}, 0, time.monotonic() + 60 * arguments.minutes
    while time.monotonic() < ends and len(ids(run)) < STEPS:
        processes = start(arguments.shoal, pipeline, run, arguments.ranks, folder)
        before = len(ids(run))
        disturbed = disturb(processes, chance, whole / 4)
        why = ended(processes, disturbed, folder)
        if why:
            for process in processes:
                process.kill()
            sys.exit(f"round {rounds}, {disturbed}: {why}; see the logs in {folder}")
        rounds += 1
        if disturbed:
            victim, what, delay = disturbed
            counts[what.name] = counts.get(what.name, 0) + 1
            print(f"round {rounds}: rank {victim} got {what.name} after {delay:.1f} s; step {before} to {len(ids(run))}", flush=True)
    for process in start(arguments.shoal, pipeline, run, arguments.ranks, folder):
        if process.wait():
            sys.exit(f"the last start ended with {process.returncode}: see {folder}")
    expected, found = ids(alone), ids(run)
    wrong = [step for step in range(1, STEPS + 1) if expected.get(step) != found.get(step)]
    if wrong or len(expected) != STEPS:
        sys.exit(f"steps {wrong[:5]} and {max(0, len(wrong) - 5)} more were trained on other samples: see {folder}")
    known = indices(run).items()
    if not known or not known <= indices(alone).items():
        sys.exit(f"what is known of the shards is not the same: see {folder}")
    print(f"well: {rounds} starts, disturbed by {counts}; {STEPS} steps on the very samples of the run left alone")


if __name__ == "__main__":
    main()
