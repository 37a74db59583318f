#!/usr/bin/env python3
"""Table 1 of the paper in small: probes of every layer, and k-NN, of networks trained on Fashion-MNIST in four ways.

    ops/bench/baselines.py                         every way with seed 31, then 32, then 33, 2,000 steps each
    ops/bench/baselines.py --seeds 31 --jobs 2     two at once, each on its share of the cores
    ops/bench/baselines.py --table                 only the table of what has been measured, as Markdown

Random is the untrained network; stream is DeepCluster as shoal does it, with a cycle every 250 steps over the last 20,000 images; epochs is
DeepCluster as published, with a cycle over the whole set and a new head once a pass; supervised is trained on the classes. The network, the views, the
steps and the optimiser are the same in all. Each measure is a line of ops/bench/baselines.tsv; those that stand there are not
measured again. Some two hours on two cores, one with --steps 1000.
"""

import argparse
import collections
import concurrent.futures
import csv
import json
import os
import statistics
import subprocess
import sys

ROOT = os.path.realpath(os.path.join(os.path.dirname(__file__), "..", ".."))
TABLE = os.path.join(ROOT, "ops", "bench", "baselines.tsv")
COLUMNS = ("steps", "epochs", "lr", "way", "seed", "measure", "percent")
LISTS = ("--train", "shards/fashion-train.tar.zst", "--test", "shards/fashion-test.tar.zst")
# Pipeline and what is set in it; the random network has no run.
WAYS = {
    "random": None,
    "stream": ("fashion", ()),
    "epochs": ("fashion", ("cluster.refresh=full", "cluster.every_steps=0", "train.head=reset")),
    "supervised": ("fashion-supervised", ()),
}


def known():
    if not os.path.exists(TABLE):
        return []
    with open(TABLE, newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def settings(pairs):
    return [word for pair in pairs for word in ("--set", pair)]


class Bench:
    def __init__(self, options):
        self.options = options
        self.threads = max(1, (os.cpu_count() or 1) // options.jobs)
        share = {"OMP_NUM_THREADS": str(self.threads), "RAYON_NUM_THREADS": str(self.threads)}
        self.environment = {**os.environ, **share}

    def shoal(self, *arguments):
        done = subprocess.run(
            [os.path.abspath(self.options.shoal), *arguments],
            cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        if done.returncode:
            sys.exit(f"shoal {' '.join(arguments)}: {done.stderr.strip()[-2000:]}")
        return done.stdout

    def train(self, way, seed):
        """What `--snapshot` takes for a network trained in this way."""
        if WAYS[way] is None:
            return "random:small"
        pipeline, pairs = WAYS[way]
        run = os.path.join(self.options.runs, f"{way}-{seed}-{self.options.steps}")
        sets = (f"stream.seed={seed}", f"train.steps={self.options.steps}", "snapshot.every_steps=500")
        sets += (f"device.threads={self.threads}", f"device.decode_threads={self.threads}", *pairs)
        self.shoal("pretrain", pipeline, "--run", run, "--no-bar", *settings(sets))
        return run

    def measure(self, way, seed):
        """Lines of the table for one network."""
        options, network = self.options, self.train(way, seed)
        common = ("--snapshot", network, "--pipeline", "pipelines/fashion.toml", *LISTS, "--json")
        common += tuple(settings((f"stream.seed={seed}",)))
        probes = json.loads(self.shoal("eval", "probes", "--epochs", str(options.epochs), "--lr", str(options.lr), *common))
        measures = {layer["layer"]: layer["top1"] for layer in probes["layers"]}
        measures["k-NN"] = json.loads(self.shoal("eval", "knn", *common))["accuracy"]
        name = (str(options.steps), str(options.epochs), str(options.lr), way, str(seed))
        return [(*name, measure, f"{100 * value:.2f}") for measure, value in measures.items()]


def table(rows):
    groups = collections.defaultdict(lambda: collections.defaultdict(list))
    measures = list(dict.fromkeys(row["measure"] for row in rows))
    for row in rows:
        groups[row["steps"], row["epochs"], row["lr"], row["way"]][row["measure"]].append(float(row["percent"]))
    print("| steps | passes of the probes | their lr | trained | seeds | " + " | ".join(measures) + " |")
    print("|" + "---|" * (5 + len(measures)))
    for key, found in groups.items():
        cells = []
        for measure in measures:
            values = found[measure]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}" if values else "")
        print("| " + " | ".join([*key, str(max(map(len, found.values()))), *cells]) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[31, 32, 33])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=12, help="passes of the probes over the train images")
    parser.add_argument("--lr", type=float, default=0.005, help="first learning rate of the probes")
    parser.add_argument("--jobs", type=int, default=1, help="networks at once")
    parser.add_argument("--runs", default="runs/baselines", help="folder of the runs, which go on where they were")
    parser.add_argument("--shoal", default=os.path.join(ROOT, "target", "release", "shoal"))
    parser.add_argument("--table", action="store_true", help="print the table, measure nothing")
    options = parser.parse_args()
    if not options.table:
        bench = Bench(options)
        done = {tuple(row[key] for key in COLUMNS[:5]) for row in known()}
        wanted = [(way, seed) for seed in options.seeds for way in options.ways]
        wanted = [
            (way, seed) for way, seed in wanted
            if (str(options.steps), str(options.epochs), str(options.lr), way, str(seed)) not in done
        ]
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            for future in concurrent.futures.as_completed([pool.submit(bench.measure, *pair) for pair in wanted]):
                is_new = not os.path.exists(TABLE)
                with open(TABLE, "a", newline="") as file:
                    writer = csv.writer(file, delimiter="\t", lineterminator="\n")
                    writer.writerows([COLUMNS] * is_new + future.result())
                print("measured", *future.result()[0][3:5], file=sys.stderr, flush=True)
    table(known())


if __name__ == "__main__":
    main()
