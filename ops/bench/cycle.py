"""The cost of a cycle beside the steps between two, and PCA with whitening beside numpy and scikit-learn. Called by cycle.sh.

A cycle of the YFCC100M pipeline for AlexNet (pipelines/yfcc100m-alexnet.toml, its numbers are read from there) is too long to run here.
Its parts are measured on fewer rows of made-up features and multiplied: covariance, projection and k-means go with the rows, the
eigenvectors do not. The steps between are measured as such, on the photographs of the repository. Encoding the bank anew is told
apart: that are forward passes, as many as there are rows.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import tomllib

from clustering import kernels_of_faiss, resident

WIDTH, KEPT = 4_096, 256
EVERY = 100  # steps from cycle to cycle where they are clustered beside


def make_features(rows, path):
    """Rows of low rank with noise on top in f16, block by block."""
    import numpy

    generator = numpy.random.default_rng(7)
    rank = 512
    mixing = generator.standard_normal((rank, WIDTH), dtype="float32") * numpy.logspace(0, -2, rank, dtype="float32")[:, None]
    with open(path, "wb") as file:
        for start in range(0, rows, 8_192):
            count = min(8_192, rows - start)
            block = generator.standard_normal((count, rank), dtype="float32") @ mixing
            block += 0.01 * generator.standard_normal((count, WIDTH), dtype="float32")
            file.write((block + 0.5).astype("float16").tobytes())


def by_numpy(rows):
    """Mean, covariance by blocks in double precision, eigenvectors."""
    import numpy

    mean = rows.mean(axis=0, dtype="float64")
    scatter = numpy.zeros((WIDTH, WIDTH))
    for start in range(0, len(rows), 8_192):
        block = rows[start : start + 8_192].astype("float64") - mean
        scatter += block.T @ block
    values, vectors = numpy.linalg.eigh(scatter / len(rows))
    return mean, (vectors[:, -KEPT:] / numpy.sqrt(values[-KEPT:])).T


def by_sklearn(rows):
    from sklearn.decomposition import PCA

    found = PCA(KEPT, whiten=True, svd_solver="covariance_eigh").fit(rows.astype("float64"))
    return found.mean_, found.components_ / found.explained_variance_[:, None] ** 0.5


def child(name, path, threads):
    import numpy
    from threadpoolctl import threadpool_limits

    rows = numpy.fromfile(path, dtype="float16").reshape(-1, WIDTH)
    before = resident(forget=True)
    with threadpool_limits(int(threads)):
        began = time.perf_counter()
        mean, projection = {"numpy": by_numpy, "scikit-learn": by_sklearn}[name](rows)
        seconds = time.perf_counter() - began
        mib = resident() - before
        projected = (rows[:20_000].astype("float64") - mean) @ projection.T
    off = abs(projected.T @ projected / len(projected) - numpy.eye(KEPT)).max()
    print(json.dumps({"seconds": seconds, "mib": mib, "off": off}))


def run(*command):
    return json.loads(subprocess.run([str(word) for word in command], check=True, stdout=subprocess.PIPE, text=True).stdout)


def whitening(options, path):
    yield f"PCA and whitening of {options.rows:,} x {WIDTH:,} in f16 to {KEPT} dimensions, {options.threads} threads:"
    yield ""
    yield "| program | seconds | against shoal | MiB beside the rows |"
    yield "|---|---|---|---|"
    commands = {
        "shoal (one pass, double)": [options.binary, "whiten", path, WIDTH, KEPT, options.threads],
        "numpy (two passes, double)": [sys.executable, __file__, "--child", "numpy", path, options.threads],
        "scikit-learn (double)": [sys.executable, __file__, "--child", "scikit-learn", path, options.threads],
    }
    found = {name: [] for name in commands}
    for _ in range(options.rounds):
        for name, command in commands.items():
            found[name].append(run(*command))
    ours = statistics.median(entry["seconds"] for entry in found["shoal (one pass, double)"])
    for name, entries in found.items():
        seconds = statistics.median(entry["seconds"] for entry in entries)
        yield f"| {name} | {seconds:.1f} | {seconds / ours:.2f} | {entries[-1]['mib']:.0f} |"
    off = found["shoal (one pass, double)"][-1]["off"]
    yield ""
    yield f"Projected by shoal's f32 matrix, the covariance differs from the identity by {off:.1e} at most."


def train(options, pipeline, steps, sets):
    """Trains anew for so many steps; the records of the run."""
    folder = os.path.join(options.data, "run")
    subprocess.run(["rm", "-rf", folder], check=True)
    command = [options.shoal, "pretrain", pipeline, "--run", folder, "--no-bar", "--steps", str(steps)]
    command += [word for entry in sets for word in ("--set", entry)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with open(os.path.join(folder, "metrics.jsonl")) as file:
        return [json.loads(line) for line in file]


def steps(options):
    """Seconds of a step of AlexNet, and of the forward pass alone for as many images."""
    sets = ["bank.capacity=512", "cluster.k=8", "cluster.pca=64", "cluster.every_steps=100000", "observe.every_steps=1"]
    sets += ["stream.shards=['shards/photos-{000000..000007}.tar']", "stream.shuffle=600", "stream.lanes=2", "device.kind='cpu'"]
    records = [record for record in train(options, "yfcc100m-alexnet", options.steps, sets) if record["kind"] == "step"]
    step = statistics.median(record["assign_s"] + record["train_s"] for record in records[1:])
    return step, statistics.median(record["assign_s"] for record in records[1:])


def cycle(options):
    with open("pipelines/yfcc100m-alexnet.toml", "rb") as file:
        plan = tomllib.load(file)
    capacity, k = plan["bank"]["capacity"], plan["cluster"]["k"]
    every, batch = plan["cluster"]["every_steps"], plan["train"]["batch_size"]
    rows = options.rows
    parts = run(options.binary, "cycle", rows, WIDTH, k, 20, options.threads)
    few = run(options.binary, "cycle", 2 * WIDTH, WIDTH, 100, 1, options.threads)  # mostly the eigenvectors
    grow = capacity / rows
    fit = few["whiten_s"] + (parts["whiten_s"] - few["whiten_s"]) * grow
    step, forward = steps(options)
    between = every * step
    # On so few rows for each cluster it settles early; on all of them it is taken to go on.
    kmeans = parts["kmeans_s"] * grow * 20 / parts["kmeans_iterations"]
    table = {
        "covariance and eigenvectors": (parts["whiten_s"], fit),
        "projection": (parts["project_s"], parts["project_s"] * grow),
        f"k-means from random rows, {parts['kmeans_iterations']} and 20 iterations": (parts["kmeans_s"], kmeans),
    }
    total = sum(value for _, value in table.values())
    yield f"A cycle of pipelines/yfcc100m-alexnet.toml ({capacity:,} rows, k = {k:,}) beside the {every:,} steps of {batch} between two:"
    yield ""
    yield f"| part | {rows:,} rows, s | {capacity:,} rows, s | share of the steps |"
    yield "|---|---|---|---|"
    for name, (measured, whole) in table.items():
        yield f"| {name} | {measured:.1f} | {whole:.0f} | {100 * whole / between:.2f} % |"
    yield f"| **clustering** | | {total:.0f} | **{100 * total / between:.2f} %** |"
    warm = parts["warm_s"] * grow
    yield f"| k-means from the outcome, {parts['warm_iterations']} iterations | {parts['warm_s']:.1f} | {warm:.0f} | {100 * warm / between:.2f} % |"
    encoding = forward / batch * capacity
    yield f"| encoding the bank anew (refill) | | {encoding:.0f} | {100 * encoding / between:.2f} % |"
    yield f"| the steps | {step:.2f} each | {between:.0f} | |"


def overlap(options):
    """A run of pipelines/fashion.toml that stands still for its cycles, and one that clusters beside its steps; alternating."""
    sets = [f"cluster.every_steps={EVERY}", "cluster.k=1000", "cluster.pca=128", "observe.every_steps=1", "snapshot.every_steps=0"]
    found = {"false": [], "true": []}
    for _ in range(options.rounds):
        for mode, runs in found.items():
            began = time.perf_counter()
            records = train(options, "fashion", 3 * EVERY + 1, [*sets, f"cluster.overlap={mode}"])
            runs.append({"whole": time.perf_counter() - began} | told(records))
    yield f"{3 * EVERY + 1} steps of pipelines/fashion.toml with {' '.join(sets[:3])}, {options.threads} threads, median of {options.rounds}:"
    yield ""
    yield "| cluster.overlap | the run, s | a clustering, s | training stood still for it, s | a step, ms | a step beside a clustering, ms |"
    yield "|---|---|---|---|---|---|"
    for mode, runs in found.items():
        whole, took, stood, alone, beside = (
            statistics.median(values) if (values := [run[key] for run in runs if run[key] is not None]) else None
            for key in ("whole", "took", "stood", "alone", "beside")
        )
        beside = f"{1e3 * beside:.0f}" if beside else ""
        yield f"| {mode} | {whole:.1f} | {took:.2f} | {stood:.2f} | {1e3 * alone:.0f} | {beside} |"


def told(records):
    """Of the cycles of a run but the first, and of its steps, alone and while a clustering was under way."""
    seconds = {record["step"]: record["assign_s"] + record["train_s"] for record in records if record["kind"] == "step"}
    cycles = [record for record in records if record["kind"] == "cycle"][1:]
    beside = set()
    for cycle in cycles:
        left = cycle["seconds"] - cycle["stood_s"]
        began = cycle["step"] // EVERY * EVERY  # it is installed half of the way to the next
        for step in range(began + 1, cycle["step"] + 1):
            if left <= 0:
                break
            beside.add(step)
            left -= seconds[step]

    def middle(steps):
        values = [seconds[step] for step in steps]
        return statistics.median(values) if values else None

    return {
        "took": statistics.median(cycle["seconds"] for cycle in cycles),
        "stood": statistics.median(cycle["stood_s"] for cycle in cycles),
        "alone": middle(step for step in seconds if step not in beside and step > 10),
        "beside": middle(beside),
    }


def main():
    if sys.argv[1:2] == ["--child"]:
        return child(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("binary")
    parser.add_argument("shoal")
    parser.add_argument("data")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=6, help="steps of AlexNet to measure")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--parts", default="whitening,cycle", help="of whitening, cycle, overlap")
    parser.add_argument("--results", help="file to append the tables to")
    options = parser.parse_args()
    kernels = kernels_of_faiss()  # numpy has an OpenBLAS of its own, which errs like that of faiss
    if kernels:
        os.environ["OPENBLAS_CORETYPE"] = kernels
    lines = []
    for part in options.parts.split(","):
        if part == "whitening":
            path = os.path.join(options.data, "features.f16")
            make_features(options.rows, path)
            made = whitening(options, path)
        else:
            made = {"cycle": cycle, "overlap": overlap}[part](options)
        for line in made:
            print(line, flush=True)
            lines.append(line)
        lines.append("")
    if options.results:
        with open(options.results, "a") as file:
            file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
