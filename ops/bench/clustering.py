"""k-means of shoal beside faiss-cpu and scikit-learn from the same start, and a bare torch.matmul as a measure.

Called by clustering.sh. Data are unit rows of 256 dimensions: isotropic noise (the worst case for any pruning), a mixture of
groups with Zipf-distributed sizes and a spread like that of whitened features, and features of a network where an Arrow file of
`shoal embed` is given (whitened by PCA first). Programs alternate; each figure is the median over rounds. Memory is what a program
takes at its peak beside points and start. With --growth only how the time grows is measured, one run each, and drawn.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

WIDTH = 256
SEED = 7


def unit(rows):
    import numpy

    rows /= numpy.maximum(numpy.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return rows


def noise(count, width, generator):
    return unit(generator.standard_normal((count, width), dtype="float32"))


def mixture(count, width, generator):
    """Groups whose sizes fall as 1 / rank, each spread about its center as far as half of the way to the next."""
    import numpy

    groups = max(200, count // 500)
    shares = 1.0 / numpy.arange(1, groups + 1)
    group = generator.choice(groups, size=count, p=shares / shares.sum())
    centers = unit(generator.standard_normal((groups, width), dtype="float32"))
    spread = generator.uniform(0.3, 1.0, (groups, 1)).astype("float32")
    rows = generator.standard_normal((count, width), dtype="float32") / width**0.5
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
    import numpy

    name, points, start, width, iterations, threads = arguments
    points = numpy.fromfile(points, dtype="float32").reshape(-1, int(width))
    start = numpy.fromfile(start, dtype="float32").reshape(-1, int(width))
    before = resident(forget=True)
    seconds, objective = PEERS[name](points, start, int(iterations), int(threads))
    print(json.dumps({"seconds": seconds, "objective": objective, "mib": resident() - before}))


def resident(forget=False):
    """MiB that this process has had in memory at most, since it was last told to forget."""
    if forget:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:")) / 1024


def kernels_of_faiss():
    """The name of the kernels with which faiss's OpenBLAS is fastest: on virtual machines it often takes the processor for an old one."""
    import numpy

    generator = numpy.random.default_rng(SEED)
    with tempfile.TemporaryDirectory() as folder:
        paths = [os.path.join(folder, name) for name in ("points.f32", "start.f32")]
        noise(20_000, WIDTH, generator).tofile(paths[0])
        noise(500, WIDTH, generator).tofile(paths[1])
        command = [sys.executable, __file__, "--child", "faiss-cpu", *paths, str(WIDTH), "3", str(os.cpu_count())]
        seconds = {}
        for kernels in (None, "Haswell", "Zen", "SkylakeX", "Sapphirerapids"):
            environment = os.environ | ({"OPENBLAS_CORETYPE": kernels} if kernels else {})
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            if done.returncode == 0:
                seconds[kernels] = json.loads(done.stdout)["seconds"]
        return min(seconds, key=seconds.get)


class Case:
    """Points and a start on disk, for every program."""

    def __init__(self, options, kind, rows, k, width=WIDTH):
        import numpy

        generator = numpy.random.default_rng(SEED)
        make = {"mixture": mixture, "noise": noise}
        points = features(rows, options.features) if kind == "features" else make[kind](rows, width, generator)
        start = points[generator.permutation(len(points))[:k]]
        self.rows, self.width = points.shape
        self.paths = [os.path.join(options.data, name) for name in ("points.f32", "start.f32")]
        points.tofile(self.paths[0])
        start.tofile(self.paths[1])
        self.binary, self.iterations = options.binary, options.iterations
        self.environment = os.environ | ({"OPENBLAS_CORETYPE": options.kernels} if options.kernels else {})

    def run(self, program, threads):
        numbers = [str(self.width), str(self.iterations), str(threads)]
        if program == "shoal":
            command = [self.binary, "kmeans", *self.paths, *numbers]
        else:
            command = [sys.executable, __file__, "--child", program, *self.paths, *numbers]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=self.environment, text=True)
        return json.loads(done.stdout)


def table(options):
    programs = options.programs.split(",")
    head = ["data", "rows", "k", "program", "seconds", "against shoal", "objective against shoal", "MiB"]
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for sizes in options.cases.split(","):
        rows, k = (int(number) for number in sizes.split("x"))
        for kind in options.kinds.split(",") + (["features"] if options.features else []):
            case = Case(options, kind, rows, k)
            found = {program: [] for program in programs}
            for _ in range(options.rounds):
                for program in programs:
                    found[program].append(case.run(program, options.threads))
            ours = statistics.median(run["seconds"] for run in found["shoal"])
            for program in programs:
                seconds = statistics.median(run["seconds"] for run in found[program])
                last = found[program][-1]
                change = last["objective"] and f"{100 * (last['objective'] / found['shoal'][-1]['objective'] - 1):+.4f} %"
                cells = [kind, f"{case.rows:,}", f"{k:,}", program, f"{seconds:.2f}", f"{seconds / ours:.2f}", change or ""]
                yield "| " + " | ".join([*cells, f"{last['mib']:.0f}"]) + " |"


# What grows, over which values, and the case for each.
GROWTH = {
    "rows (k = 1,000)": ([12_500, 25_000, 50_000, 100_000, 200_000, 400_000], lambda n: dict(rows=n, k=1_000)),
    "k (50,000 rows)": ([250, 500, 1_000, 2_000, 4_000, 8_000], lambda k: dict(rows=50_000, k=k)),
    "dimensions (50,000 rows, k = 1,000)": ([32, 64, 128, 256, 512], lambda d: dict(rows=50_000, k=1_000, width=d)),
    "threads (100,000 rows, k = 1,000)": (None, lambda _: dict(rows=100_000, k=1_000)),
}


def growth(options):
    """Draws seconds over each of GROWTH for every program, on logarithmic axes, and yields the numbers as a table."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    programs = options.programs.split(",")
    figure, axes = pyplot.subplots(1, len(GROWTH), figsize=(17, 4.2), layout="constrained")
    yield "| what grows | value | " + " | ".join(f"{program}, s" for program in programs) + " |"
    yield "|---|---|" + "---|" * len(programs)
    for axis, (name, (values, case)) in zip(axes, GROWTH.items()):
        values = values or range(1, options.threads + 1)
        lines = {program: [] for program in programs}
        for value in values:
            made = Case(options, "mixture", **case(value))
            threads = value if name.startswith("threads") else options.threads
            for program in programs:
                lines[program].append(made.run(program, threads)["seconds"])
            yield f"| {name} | {value:,} | " + " | ".join(f"{lines[program][-1]:.2f}" for program in programs) + " |"
        for program in programs:
            axis.plot(list(values), lines[program], marker="o", label=program)
        axis.set(xscale="log", yscale="log", xlabel=name)
        axis.set_xticks(list(values), [f"{value:,}" for value in values], rotation=45)
        axis.minorticks_off()
        axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"seconds, {options.iterations} iterations, {options.threads} threads")
    axes[0].legend()
    figure.savefig(options.growth, dpi=110)


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
    parser.add_argument("--growth", metavar="PNG", help="measure how the time grows instead, and draw it")
    parser.add_argument("--results", help="file to append the table to")
    options = parser.parse_args()
    options.kernels = kernels_of_faiss()
    print(f"faiss with the kernels {options.kernels or 'that its OpenBLAS chooses'}", file=sys.stderr)
    lines = []
    for line in growth(options) if options.growth else table(options):
        print(line, flush=True)
        lines.append(line)
    if options.results:
        with open(options.results, "a") as file:
            file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
