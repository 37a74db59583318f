#!/usr/bin/env python3
"""What it costs to be several: ranks on the loopback of one machine.

    ops/bench/ranks.sh [--rounds 3] [--parts reduce,small,overhead,kmeans]

reduce    seconds of an all-reduce by shoal and by a bare loop over c10d in Python, the same sizes, in turn
small     what each step costs beside its gradients: a vote, also by the bare loop, and the ids of a batch of 256; for 2 to 16 ranks
overhead  one process with two threads beside two ranks of one thread each, the same pipeline and global batch, in turn
kmeans    one k-means by one process with two threads, and over the shards of two ranks

Markdown goes to stdout, the constants for scaling.py to --constants.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile

ROOT = os.path.realpath(os.path.join(os.path.dirname(__file__), "..", ".."))
SIZES = [4 << 10, 256 << 10, 4 << 20, 25 << 20, 100 << 20]

SMALL = ["model.arch=small", "model.dropout=0", "views.size=64", "views.resize=72", "train.batch_size=128", "cluster.k=40", "cluster.pca=64"]
ALEXNET = ["model.arch=alexnet", "views.size=224", "views.resize=256", "train.batch_size=64", "cluster.k=100", "cluster.pca=64"]
COMMON = ["stream.shards=[\"shards/photos-*.tar\"]", "stream.shuffle=200", "device.kind=cpu", "bank.capacity=512", "cluster.every_steps=100000",
          "cluster.refresh=rolling", "snapshot.every_minutes=0", "snapshot.every_steps=0", "observe.tensorboard=false", "observe.every_steps=1"]


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(commands, size):
    """Runs one command a rank; what rank 0 printed."""
    port = str(free_port())
    processes = []
    for rank, command in enumerate(commands):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if size > 1:
            environment.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(size),
                               MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        stdout = subprocess.PIPE if rank == 0 else subprocess.DEVNULL
        processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stdout, stderr=subprocess.PIPE))
    first, errors = processes[0].communicate()
    for rank, process in enumerate(processes):
        if process.wait():
            errors = errors if rank == 0 else process.stderr.read()
            sys.exit(f"rank {rank} of {command} ended with {process.returncode}: {errors.decode()[-2000:]}")
    return first.decode()


def measure(binary, size, *arguments):
    return json.loads(start([[binary, *map(str, arguments)]] * size, size))


def bare(size, *arguments):
    script = os.path.join(ROOT, "ops/bench/ranks_peer.py")
    return json.loads(start([[sys.executable, script, *map(str, arguments)]] * size, size))


def reduce(binary, rounds):
    ours, theirs = {}, {}
    for _ in range(rounds):
        for size, seconds in measure(binary, 2, "reduce", *SIZES, 15):
            ours.setdefault(size, []).append(seconds)
        peer = bare(2, *SIZES, 15)
        for size, seconds in peer["found"]:
            theirs.setdefault(size, []).append(seconds)
    print(f"\nAll-reduce of floats, two ranks, medians of {rounds} rounds; PyTorch {peer['torch']}:\n")
    print("| size | shoal | bare c10d loop (Python) | ratio | shoal, MiB/s |\n|---|---|---|---|---|")
    found = {}
    for size in SIZES:
        own, other = statistics.median(ours[size]), statistics.median(theirs[size])
        found[size] = own
        print(f"| {size >> 10:,} KiB | {own * 1e3:.3f} ms | {other * 1e3:.3f} ms | {other / own:.2f} | {size / own / (1 << 20):,.0f} |")
    return found


def small(binary, rounds):
    print(f"\nWhat a step costs beside its gradients, on this one machine (more ranks than cores wait for each other), medians of {rounds} rounds:\n")
    print("| ranks | vote | the same by a bare c10d loop (Python) | ids of a batch of 256 |\n|---|---|---|---|")
    found = {}
    for size in [2, 4, 8, 16]:
        ours, theirs = [], []
        for _ in range(rounds):
            ours.append(measure(binary, size, "small", 100))
            theirs.append(bare(size, 64, 100)["found"][0][1])
        vote, ids = (statistics.median(seconds[what] for seconds in ours) for what in ("vote", "ids"))
        other = statistics.median(theirs)
        found[size] = {"vote": vote, "ids": ids}
        print(f"| {size} | {vote * 1e6:.0f} µs | {other * 1e6:.0f} µs | {ids * 1e6:.0f} µs |", flush=True)
    return found


def train(shoal, settings, steps, size):
    """Seconds a step: the median over the second half of the steps."""
    threads = 2 // size
    with tempfile.TemporaryDirectory() as folder:
        run = os.path.join(folder, "run")
        pipeline = os.path.join(folder, "bench.toml")
        with open(pipeline, "w") as file:
            file.write("[stream]\nshards = []\n")
        options = [*COMMON, *settings, f"train.steps={steps}", f"device.threads={threads}", f"device.decode_threads={threads}"]
        options = [part for setting in options for part in ("--set", setting)]
        start([[shoal, "pretrain", pipeline, "--run", run, "--no-bar", *options]] * size, size)
        with open(os.path.join(run, "metrics.jsonl")) as file:
            records = [json.loads(line) for line in file]
    seconds = [record["assign_s"] + record["train_s"] + record["wait_data_s"] for record in records if record["kind"] == "step"]
    return statistics.median(seconds[len(seconds) // 2:])


def overhead(shoal, rounds):
    print(f"\nSeconds a step, the same global batch, medians of {rounds} rounds:\n")
    print("| network | one process, two threads | two ranks, one thread each | ratio |\n|---|---|---|---|")
    for name, settings, steps in [("`small`, 64 pixels, batch 128", SMALL, 80), ("AlexNet, 224 pixels, batch 64", ALEXNET, 14)]:
        one, two = [], []
        for _ in range(rounds):
            one.append(train(shoal, settings, steps, 1))
            two.append(train(shoal, settings, steps, 2))
        alone, together = statistics.median(one), statistics.median(two)
        print(f"| {name} | {alone:.3f} s | {together:.3f} s | {together / alone:.2f} |", flush=True)


def kmeans(binary, rounds):
    shape = (100_000, 256, 1_000, 10)
    one, two = [], []
    for _ in range(rounds):
        one.append(measure(binary, 1, "kmeans", *shape)["seconds"])
        two.append(measure(binary, 2, "kmeans", *shape)["seconds"])
    print("\nk-means of 100,000 rows of 256 entries into 1,000 clusters, 10 iterations: one thread alone "
          f"{statistics.median(one):.1f} s, two ranks of one thread {statistics.median(two):.1f} s.")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", default="reduce,small,overhead,kmeans")
    parser.add_argument("--shoal", default=os.path.join(ROOT, "target/release/shoal"))
    parser.add_argument("--constants", help="JSON file for scaling.py")
    arguments = parser.parse_args()
    parts = arguments.parts.split(",")
    constants = {}
    if "reduce" in parts:
        constants["reduce"] = reduce(arguments.binary, arguments.rounds)
    if "small" in parts:
        constants["small"] = small(arguments.binary, arguments.rounds)
    if "overhead" in parts:
        overhead(arguments.shoal, arguments.rounds)
    if "kmeans" in parts:
        kmeans(arguments.binary, arguments.rounds)
    if arguments.constants:
        with open(arguments.constants, "w") as file:
            json.dump(constants, file, indent=1)


if __name__ == "__main__":
    main()
