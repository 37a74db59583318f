#!/usr/bin/env python3
"""Runs shoal and its peers in turn over the same shards, and writes a table. ops/bench/ingest.sh calls it.

Usage: ingest.py INGEST_BINARY DATA [--rounds 3] [--seconds 4] [--results ops/bench/RESULTS.md]

DATA holds bench-*.tar; a server of the bench's own gives them over HTTP. Before the rounds each peer tries its ways and
numbers of workers on two views from disk, once, and goes on with the best. Memory is the PSS of a program and all its
children, largest of the samples taken twice a second. With --results the section between the two marks is replaced.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

PEER = str(Path(__file__).with_name("ingest_peer.py"))
MARKS = ("<!-- ingest.sh: begin -->", "<!-- ingest.sh: end -->")
HZ = os.sysconf("SC_CLK_TCK")


def children_of(root):
    """Process ids of a process and all that came of it."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def memory_of(root):
    """Bytes that a process and its children hold, shared pages counted once."""
    total = 0
    for pid in children_of(root):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total * 1024


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / HZ


def run(command, patience=90):
    """What a program prints as JSON, with its peak memory; none with a reason on stderr where it fails."""
    environment = {**os.environ, "INGEST_STARTED": repr(time.time())}
    program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    peak, ended = [0], threading.Event()

    def watch():
        while not ended.wait(0.5):
            peak[0] = max(peak[0], memory_of(program.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        out, err = program.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        out, err = "", f"no answer in {patience} s"
    finally:
        try:
            os.killpg(program.pid, 9)  # its own group: workers that outlive it
        except ProcessLookupError:
            pass
        ended.set()
        watcher.join()
    lines = [line for line in out.splitlines() if line.startswith("{")]
    if not lines:
        print(f"failed: {' '.join(command[:6])} ...: {err.strip().splitlines()[-1:] or 'no output'}", file=sys.stderr)
        return None
    found = json.loads(lines[-1])
    return {**found, "rate": found["images"] / found["seconds"], "memory": peak[0]}


def best_way(name, ways, shards, seconds):
    """The fastest of (how, workers) on two views."""
    found = {}
    for how, workers in ways:
        result = run(peer(name, "both", how, workers, shards, seconds))
        if result:
            found[how, workers] = result["rate"]
            print(f"  {name} {how}, {workers} workers: {result['rate']:.0f} images/s", file=sys.stderr)
    return max(found, key=found.get) if found else None


def peer(name, views, how, workers, shards, seconds):
    options = ["--views", views, "--how", how, "--workers", str(workers), "--seconds", str(seconds)]
    return [sys.executable, PEER, name, *options, *shards]


def programs(options, disk, http, ways, converted):
    """(name, place, views) -> command."""
    found = {}
    for views in ("both", "train"):
        timed = ["--views", views, "--seconds", str(options.seconds)]
        found["bare loop: decode and cut", "memory", views] = [options.binary, "bare", *timed, *disk]
        for place, shards in (("disk", disk), ("http", http)):
            found["shoal", place, views] = [options.binary, "ours", *timed, *shards]
            for name in ("webdataset", "spdl"):
                if ways.get(name):
                    found[name, place, views] = peer(name, views, *ways[name], shards, options.seconds)
        if ways.get("litdata"):
            found["litdata", "disk", views] = peer("litdata", views, *ways["litdata"], [converted], options.seconds)
    found["bare loop: decode only", "memory", "none"] = [
        options.binary, "bare", "--views", "none", "--seconds", str(options.seconds), *disk,
    ]
    return found


def median_of(results, key):
    values = [result[key] for result in results if result and result.get(key) is not None]
    return statistics.median(values) if values else None


def table(results, ways):
    lines = ["| loader | from | views | images/s (lowest to highest) | first batch, s | peak memory, MiB |", "|---|---|---|---|---|---|"]
    for (name, place, views), rounds in results.items():
        rate = median_of(rounds, "rate")
        if rate is None:
            lines.append(f"| {name} | {place} | {views} | failed | | |")
            continue
        rates = [result["rate"] for result in rounds if result]
        first, memory = median_of(rounds, "first_batch_s"), median_of(rounds, "memory")
        first = "" if first is None else f"{first:.1f}"
        way = f" ({ways[name][0]}, {ways[name][1]} workers)" if ways.get(name) else ""
        bold = "**" if name == "shoal" else ""
        lines.append(f"| {name}{way} | {place} | {views} | {bold}{rate:,.0f}{bold} ({min(rates):,.0f} to {max(rates):,.0f}) | {first} | {memory / 2**20:,.0f} |")
    return lines


def ratios(results):
    lines = ["| two views: shoal over | disk | http |", "|---|---|---|"]
    rate = {key: median_of(rounds, "rate") for key, rounds in results.items()}
    for name, place_of, views in (
        ("webdataset", None, "both"),
        ("spdl", None, "both"),
        ("litdata", None, "both"),
        ("bare loop: decode and cut", "memory", "both"),
        ("bare loop: decode only", "memory", "none"),
    ):
        cells = []
        for place in ("disk", "http"):
            ours, other = rate.get(("shoal", place, "both")), rate.get((name, place_of or place, views))
            cells.append(f"{ours / other:.2f}" if ours and other else "")
        lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
    return lines


def version(package):
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"no {package}"


def write_results(path, text):
    content = path.read_text()
    if MARKS[0] not in content:
        content += f"\n## Ingest: tars of 500-pixel JPEGs into batches\n\n{MARKS[0]}\n{MARKS[1]}\n"
    before, rest = content.split(MARKS[0], 1)
    after = rest.split(MARKS[1], 1)[1]
    path.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary")
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    disk = [str(shard) for shard in sorted(options.data.glob("bench-*.tar"))]
    size = sum(Path(shard).stat().st_size for shard in disk)
    cores = len(os.sched_getaffinity(0))

    server = subprocess.Popen([options.binary, "serve", str(options.data)], stdout=subprocess.PIPE, text=True)
    try:
        address = server.stdout.readline().strip()
        http = [f"{address}/{Path(shard).name}" for shard in disk]
        converted = str(options.data / "litdata")
        if not Path(converted, "index.json").exists():
            subprocess.run([sys.executable, PEER, "litdata", "--convert", converted, *disk], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        workers = sorted({1, cores, cores + 1})
        ways = {
            "webdataset": best_way("webdataset", [(how, n) for how in ("tensor", "pillow") for n in workers], disk, 3),
            "spdl": best_way("spdl", [(how, n) for how in ("tensor", "ffmpeg") for n in workers[1:]], disk, 3),
            "litdata": best_way("litdata", [("tensor", n) for n in workers], [converted], 3),
        }
        commands = programs(options, disk, http, ways, converted)
        results = {key: [] for key in commands}
        server_share = []
        for number in range(options.rounds):
            for key, command in commands.items():
                before, started = cpu_seconds(server.pid), time.monotonic()
                result = run(command)
                results[key].append(result)
                if key[:2] == ("shoal", "http"):
                    server_share.append((cpu_seconds(server.pid) - before) / (time.monotonic() - started))
                rate = f"{result['rate']:.0f} images/s" if result else "failed"
                note = f" {result['note']}" if result and result.get("note") else ""
                print(f"round {number + 1}: {' '.join(key)}: {rate}{note}", file=sys.stderr)
    finally:
        server.kill()

    packages = ("torch", "torchvision", "webdataset", "spdl", "litdata", "pillow")
    text = "\n".join([
        f"Written by `ops/bench/ingest.sh` on {datetime.date.today()}: {cores} cores ({platform.machine()}), "
        f"{len(disk)} tars, {size / 1e6:.0f} MB, page cache warm; batches of 256, 224 pixels, uint8, no shuffle buffer; medians of "
        f"{options.rounds} alternating rounds of {options.seconds:g} s each. Python {platform.python_version()}, "
        f"{', '.join(version(package) for package in packages)}. `both`: a center view and a train view of each image; "
        f"`train`: the train view alone. First batch: since the program was started, imports included. Memory: PSS of the program and "
        f"its children. LitData reads its own shards, converted beforehand. The HTTP server took "
        f"{100 * statistics.mean(server_share):.0f} % of a core while shoal read from it.",
        "",
        *table(results, ways),
        "",
        *ratios(results),
    ])
    print(text)
    if options.results:
        write_results(options.results, text)


if __name__ == "__main__":
    main()
