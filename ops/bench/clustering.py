"""k-means of shoal beside faiss-cpu and scikit-learn from the same start, and a bare torch.matmul as a measure.

Called by clustering.sh. Data are unit rows of 256 dimensions: isotropic noise (the worst case for any pruning), a mixture of
groups with Zipf-distributed sizes and a spread like that of whitened features, and features of a network where an Arrow file of
`shoal embed` is given (whitened by PCA first). Programs alternate; each figure is the median over rounds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

WIDTH = 256
SEED = 7


def unit(rows):
    import numpy

    rows /= numpy.maximum(numpy.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return rows


def noise(count, generator):
    return unit(generator.standard_normal((count, WIDTH), dtype="float32"))


def mixture(count, generator):
    """Groups whose sizes fall as 1 / rank, each spread about its center as far as half of the way to the next."""
    import numpy

    groups = max(200, count // 500)
    shares = 1.0 / numpy.arange(1, groups + 1)
    group = generator.choice(groups, size=count, p=shares / shares.sum())
    centers = unit(generator.standard_normal((groups, WIDTH), dtype="float32"))
    spread = generator.uniform(0.3, 1.0, (groups, 1)).astype("float32")
    rows = generator.standard_normal((count, WIDTH), dtype="float32") / WIDTH**0.5
    rows *= spread[group]
    rows += centers[group]
    return unit(rows)


def features(count, path):
    import numpy
    import pyarrow

    with pyarrow.memory_map(path) as source:
        table = pyarrow.ipc.open_file(source).read_all()
    column = table["feature"].combine_chunks()
    rows = column.flatten().to_numpy().reshape(len(column), -1).astype("float32")[:count]
    rows -= rows.mean(axis=0)
    values, vectors = numpy.linalg.eigh((rows.T.astype("float64") @ rows) / len(rows))
    kept = vectors[:, -WIDTH:] / numpy.sqrt(numpy.maximum(values[-WIDTH:], values[-1] * 1e-5))
    return unit((rows @ kept.astype("float32")).astype("float32"))


def run_faiss(points, start, iterations, threads):
    import faiss

    faiss.omp_set_num_threads(threads)
    clustering = faiss.Clustering(points.shape[1], len(start))
    clustering.niter = iterations
    clustering.max_points_per_centroid = 10_000_000
    clustering.min_points_per_centroid = 1
    faiss.copy_array_to_vector(start.ravel(), clustering.centroids)
    index = faiss.IndexFlatL2(points.shape[1])
    began = time.perf_counter()
    clustering.train(points, index)
    distances, _ = index.search(points, 1)  # the final assignment, which shoal's time holds as well
    return time.perf_counter() - began, float(distances.astype("float64").sum())


def run_sklearn(points, start, iterations, threads):
    import warnings

    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    with threadpool_limits(threads), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        began = time.perf_counter()
        found = KMeans(len(start), init=start, n_init=1, max_iter=iterations, tol=0, algorithm="lloyd").fit(points)
        return time.perf_counter() - began, float(found.inertia_)


def run_matmul(points, start, iterations, threads):
    """The products of all iterations and of the final assignment, without anything else; no objective."""
    import torch

    torch.set_num_threads(threads)
    rows, columns = torch.from_numpy(points), torch.from_numpy(start).T
    block = min(len(points), max(1, (16 << 20) // (4 * len(start))))
    out = torch.empty(block, len(start))
    part = min(len(points), max(block, len(points) // 10)) // block * block
    torch.mm(rows[:block], columns, out=out)  # the first call fetches memory and threads
    began = time.perf_counter()
    for at in range(0, part, block):
        torch.mm(rows[at : at + block], columns, out=out)
    seconds = time.perf_counter() - began
    return seconds * len(points) / part * (iterations + 1), None


PEERS = {"faiss-cpu": run_faiss, "scikit-learn": run_sklearn, "torch.matmul": run_matmul}


def child(arguments):
    """One peer in a process of its own, so that memory is its own and no two OpenMPs meet."""
    import resource

    import numpy

    name, points, start, iterations, threads = arguments
    points = numpy.fromfile(points, dtype="float32").reshape(-1, WIDTH)
    start = numpy.fromfile(start, dtype="float32").reshape(-1, WIDTH)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, objective = PEERS[name](points, start, int(iterations), int(threads))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({"seconds": seconds, "objective": objective, "mib": memory / 1024}))


def measure(program, binary, points, start, iterations, threads):
    if program == "shoal":
        command = [binary, points, start, str(WIDTH), str(iterations), str(threads)]
    else:
        command = [sys.executable, __file__, "--child", program, points, start, str(iterations), str(threads)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main():
    if sys.argv[1:2] == ["--child"]:
        return child(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("binary")
    parser.add_argument("data", help="folder for the generated files")
    parser.add_argument("--cases", default="200000x1000,100000x10000,1000000x1000")
    parser.add_argument("--kinds", default="mixture,noise")
    parser.add_argument("--features", help="Arrow file of shoal embed: one kind more")
    parser.add_argument("--programs", default="shoal,faiss-cpu,torch.matmul")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--results", help="file to append the table to")
    options = parser.parse_args()

    import numpy

    kinds = options.kinds.split(",") + (["features"] if options.features else [])
    programs = options.programs.split(",")
    lines = ["| data | rows | k | program | seconds | against shoal | objective against shoal |", "|---|---|---|---|---|---|---|"]
    for case in options.cases.split(","):
        rows, k = (int(number) for number in case.split("x"))
        for kind in kinds:
            generator = numpy.random.default_rng(SEED)
            make = {"mixture": lambda: mixture(rows, generator), "noise": lambda: noise(rows, generator)}
            points = features(rows, options.features) if kind == "features" else make[kind]()
            start = points[generator.permutation(len(points))[:k]]
            paths = [os.path.join(options.data, name) for name in ("points.f32", "start.f32")]
            points.tofile(paths[0])
            start.tofile(paths[1])
            count = len(points)
            del points
            found = {program: [] for program in programs}
            for _ in range(options.rounds):
                for program in programs:
                    found[program].append(measure(program, options.binary, *paths, options.iterations, options.threads))
            ours = statistics.median(run["seconds"] for run in found["shoal"])
            for program in programs:
                seconds = statistics.median(run["seconds"] for run in found[program])
                objective = found[program][0]["objective"]
                change = "" if objective is None else f"{100 * (objective / found['shoal'][0]['objective'] - 1):+.4f} %"
                lines.append(f"| {kind} | {count:,} | {k:,} | {program} | {seconds:.2f} | {seconds / ours:.2f} | {change} |")
                print(lines[-1], flush=True)
    table = "\n".join(lines)
    if options.results:
        with open(options.results, "a") as file:
            file.write(table + "\n")


if __name__ == "__main__":
    main()
