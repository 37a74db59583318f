#!/usr/bin/env python3
"""What a step and a cycle cost with more and more ranks: a model on paper, and a simulation of it with ranks that jitter.

    ops/bench/scaling.py [--plot ops/bench/figures/scaling.png] [--check]

No cluster was at hand. What could be measured is: one H100, k-means on processors, and calls of ranks on the loopback of two cores
(ops/bench/ranks.sh; --check compares the model with that). The rest are figures of makers and of others, each with its source below. So the shape of the curves and where they bend is the result, not the numbers
at their ends.

A step of each rank: compute (with jitter) while gradients are reduced in buckets behind the backward pass, then the small calls over TCP: a
vote, the ids of the batch, features to the ranks that keep them, running statistics. A cycle: covariance and centroids are summed over all
ranks, each assigns its own rows.
"""

import argparse
import math
import os

import numpy as np

ROOT = os.path.realpath(os.path.join(os.path.dirname(__file__), "..", ".."))
WORLDS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]

# Between GPUs of one machine (NVLink 4: 450 GB/s a direction, NCCL reaches about 80 %) and between machines (400 Gb/s a GPU, about 90 %).
NODE = 8
NVLINK = 360e9
FABRIC = 45e9
NCCL_LATENCY = 8e-6  # a hop; NCCL's own tests give 20 to 40 µs for a small all-reduce within 8 GPUs
# gloo over TCP: hops of a small message within a data centre, and one stream's rate. On the loopback of two cores: 60 to 90 µs.
TCP_LATENCY = 25e-6
TCP_RATE = 2.5e9
# Up to so many bytes shoal goes in few hops.
SMALL = 128 << 10
# Share of a step that is the backward pass, behind which buckets hide (forward of student and assigner: one third).
BACKWARD = 0.6
# Standard deviation of a rank's step beside its mean: stragglers by decoding, clocks, other tenants.
JITTER = 0.03


class Case:
    """A network and its pipeline."""

    def __init__(self, name, parameters, width, k, rate, batch, capacity, color):
        self.name, self.color = name, color
        self.parameters = parameters  # of the network, without its head
        self.width, self.k = width, k
        self.rate = rate  # images a second of one H100 with 16 cores, as measured (RESULTS.md, "On a GPU"); of k = 100,000 assumed
        self.batch = batch  # photographs of a step and rank
        self.capacity = capacity

    @property
    def gradient_bytes(self):
        return 4 * (self.parameters + self.width * self.k)


CASES = [
    Case("AlexNet, k = 10,000, 256 a rank", 57_000_000, 4096, 10_000, 6455, 256, 1_000_000, "#1b6ca8"),
    Case("AlexNet, k = 100,000, 256 a rank", 57_000_000, 4096, 100_000, 5500, 256, 10_000_000, "#c8553d"),
    Case("VGG-16, k = 10,000, 64 a rank", 134_000_000, 4096, 10_000, 1619, 64, 1_000_000, "#588157"),
]


def nccl_all_reduce(size, ranks):
    """Ring or tree, whichever is faster, within a machine and between machines."""
    if ranks == 1:
        return 0.0
    rate = NVLINK if ranks <= NODE else FABRIC
    ring = 2 * (ranks - 1) * NCCL_LATENCY + 2 * (ranks - 1) / ranks * size / rate
    tree = 2 * math.ceil(math.log2(ranks)) * NCCL_LATENCY + 2 * size / rate
    return min(ring, tree)


def gloo_ring(size, ranks, latency=TCP_LATENCY, rate=TCP_RATE):
    """Large tensors: c10d has gloo reduce in a ring."""
    return 0.0 if ranks == 1 else 2 * (ranks - 1) * latency + 2 * (ranks - 1) / ranks * size / rate


def few_hops(size, ranks, latency=TCP_LATENCY, rate=TCP_RATE):
    """Small ones (src/torch/c10d/hops.cpp): recursive doubling."""
    hops = math.floor(math.log2(ranks)) + (0 if ranks & (ranks - 1) == 0 else 2)
    return hops * (latency + size / rate)


def gloo_gather(size, ranks, latency=TCP_LATENCY, rate=TCP_RATE):
    """Parts of `size`: small ones in a few hops, others round the ring once."""
    if ranks == 1:
        return 0.0
    hops = math.ceil(math.log2(ranks)) if size <= SMALL else ranks - 1
    return hops * latency + (ranks - 1) * size / rate


def gloo_all_to_all(size, ranks, latency=TCP_LATENCY, rate=TCP_RATE):
    """A message to each other rank; `size` leaves each in all."""
    return 0.0 if ranks == 1 else (ranks - 1) * latency / 4 + size / rate


def small_calls(case, ranks):
    """What each step says over TCP: a vote of 8 numbers, 40 bytes a sample of ids, features in f16 to those who keep them."""
    vote = few_hops(64, ranks)
    ids = gloo_gather(16 + 40 * case.batch, ranks)
    features = gloo_all_to_all(2 * case.width * case.batch, ranks)
    return vote + ids + features


def step(case, ranks, generator=None, steps=400):
    """Seconds of a step: compute, gradients that do not hide, small calls, and what the slowest rank costs the others."""
    compute = case.batch / case.rate
    if generator is None or ranks == 1:
        waiting = 0.0
    else:
        draws = generator.lognormal(-JITTER**2 / 2, JITTER, (steps, ranks))
        waiting = compute * (draws.max(axis=1).mean() - 1.0)
    reduce = nccl_all_reduce(case.gradient_bytes, ranks)
    last = nccl_all_reduce(1 << 20, ranks)  # the last bucket comes when nothing is left to hide behind
    gradients = last + max(0.0, reduce - BACKWARD * compute)
    return {"compute": compute, "gradients": gradients, "small calls": small_calls(case, ranks), "waiting": waiting}


def cycle(case, ranks):
    """Seconds of a clustering, on the processors: a core sees 5e8 pairs of point and centroid a second (RESULTS.md: 200,000 x 1,000, 21
    times, in 4.2 s of two cores), eight cores a rank. Eigenvectors of 4,096 dimensions take rank 0 25 s; covariance is a product in double
    precision at 50 GFLOP/s a core. Encoding goes at twice the speed of training."""
    rows = case.capacity / ranks
    cores, iterations, kept = 8, 20, 256
    encode = rows / (2 * case.rate)
    covariance = rows * case.width**2 / (cores * 50e9) + gloo_ring(8 * case.width**2, ranks)
    eigenvectors = 25.0
    assign = iterations * rows * case.k / 5e8 / cores
    means = iterations * gloo_ring(8 * case.k * kept, ranks)
    labels = gloo_gather(12 * rows, ranks)
    return {"encode": encode, "covariance": covariance, "eigenvectors": eigenvectors, "assign": assign, "means": means, "labels": labels}


def table():
    generator = np.random.default_rng(1)
    rows = []
    for case in CASES:
        print(f"\n{case.name}: {case.gradient_bytes / 1e6:,.0f} MB of gradients a step\n")
        print("| ranks | step, ms | compute | gradients | small calls | waiting | images/s | efficiency | pass over 100 M | a cycle |")
        print("|---|---|---|---|---|---|---|---|---|---|")
        for ranks in WORLDS:
            parts = step(case, ranks, generator)
            seconds = sum(parts.values())
            images = ranks * case.batch / seconds
            efficiency = images / (ranks * case.rate)
            hours = 99.2e6 / images / 3600
            clustering = sum(cycle(case, ranks).values())
            rows.append((case, ranks, parts, images, efficiency))
            if ranks in (1, 8, 64, 256, 1024):
                shares = " | ".join(f"{parts[name] * 1e3:.1f}" for name in ("compute", "gradients", "small calls", "waiting"))
                passing = f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.0f} min"
                print(f"| {ranks:,} | {seconds * 1e3:.1f} | {shares} | {images:,.0f} | {efficiency:.0%} | {passing} | {clustering:.0f} s |")
    print("\nA cycle of the first, by part, seconds:\n")
    names = list(cycle(CASES[0], 1))
    print("| ranks | " + " | ".join(names) + " |\n|---" * 1 + "|---" * len(names) + "|")
    for ranks in (1, 8, 64, 1024):
        print(f"| {ranks:,} | " + " | ".join(f"{cycle(CASES[0], ranks)[name]:.2f}" for name in names) + " |")
    return rows


def plot(rows, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for case in CASES:
        own = [row for row in rows if row[0] is case]
        left.plot([row[1] for row in own], [row[3] for row in own], "o-", color=case.color, label=case.name, ms=4)
        left.plot(WORLDS, [ranks * case.rate for ranks in WORLDS], ":", color=case.color, lw=1)
    left.set(xscale="log", yscale="log", xlabel="ranks (one GPU each)", ylabel="images a second", title="Throughput; dotted: perfect")
    left.set_xticks(WORLDS[::2], [f"{ranks:,}" for ranks in WORLDS[::2]])
    left.xaxis.minorticks_off()
    left.grid(alpha=0.25)
    left.legend(frameon=False)
    own = [row for row in rows if row[0] is CASES[0]]
    bottom = np.zeros(len(own))
    colors = {"compute": "#1b6ca8", "gradients": "#c8553d", "small calls": "#e9b44c", "waiting": "#9aa5b1"}
    for name, color in colors.items():
        heights = np.array([row[2][name] * 1e3 for row in own])
        right.bar(range(len(own)), heights, bottom=bottom, color=color, label={"small calls": "small calls over TCP", "waiting": "waiting for the slowest"}.get(name, name))
        bottom += heights
    right.set(xlabel="ranks", ylabel="milliseconds a step", title=CASES[0].name)
    right.set_xticks(range(len(own)), [f"{row[1]:,}" for row in own])
    right.legend(frameon=False, loc="upper left")
    figure.savefig(path, dpi=120)


def check(constants):
    """The model beside what ops/bench/ranks.sh measured on the loopback, with the latency and rate that its ends give."""
    import json

    with open(constants) as file:
        measured = json.load(file)
    sizes = {int(size): seconds for size, seconds in measured["reduce"].items()}
    smallest, largest = min(sizes), max(sizes)
    latency = sizes[smallest]
    rate = largest / (sizes[largest] - sizes[smallest])
    print(f"loopback, two ranks: {latency * 1e6:.0f} µs a hop, {rate / 1e9:.2f} GB/s\n")
    print("| all-reduce | measured | model |\n|---|---|---|")
    for size, seconds in sorted(sizes.items()):
        model = few_hops if size <= SMALL else gloo_ring
        print(f"| {size >> 10:,} KiB | {seconds * 1e3:.2f} ms | {model(size, 2, latency, rate) * 1e3:.2f} ms |")
    hop = measured["small"]["2"]["vote"]
    print("\n| ranks | vote, measured | model: as many hops as doubling takes, each rank with a core |\n|---|---|---|")
    for ranks, seconds in measured["small"].items():
        print(f"| {ranks} | {seconds['vote'] * 1e6:.0f} µs | {few_hops(64, int(ranks), hop) * 1e6:.0f} µs |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot")
    parser.add_argument("--check", metavar="CONSTANTS", help="what ops/bench/ranks.sh --constants wrote")
    arguments = parser.parse_args()
    if arguments.check:
        check(arguments.check)
        return
    rows = table()
    if arguments.plot:
        plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
