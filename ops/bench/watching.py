#!/usr/bin/env python3
"""What an open page costs a run of months: CPU time of `shoal serve` over made records, asked as a page asks.

    ops/bench/watching.py [--seconds 60] [--shoal target/release/shoal]

The run has 200,000 records of steps and 2,000 of cycles with 10,000 clusters each: as many as YFCC100M gives in four passes or so. Printed are the
time of the first answer, which reads all of it, and then CPU time and memory while one page asks for the state and the curves every two seconds.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import tempfile
import time
import urllib.request

ROOT = os.path.realpath(os.path.join(os.path.dirname(__file__), "..", ".."))
STEPS, CYCLES, CLUSTERS = 200_000, 2_000, 10_000


def step(at):
    return {
        "kind": "step", "step": at * 10, "images": at * 2560, "loss": 7.0 - at / STEPS, "lr": 0.05, "images_per_s": 900.0 + at % 50,
        "wait_data_s": 0.01, "assign_s": 0.05, "train_s": 0.2, "label_entropy": 9.1, "largest_share": 0.001,
        "losses": {"not_found": at, "decode_failed": at // 3, "unreachable": 5}, "filtered": {"too_small": at * 2}, "pass": 0, "ids": "0" * 16,
        "next_cycle": None,
    }


def cycle(at):
    sizes = [2 * CLUSTERS - 2 * number + at % 3 for number in range(CLUSTERS)]
    return {
        "kind": "cycle", "step": at * 1000, "cycle": at + 1, "rows": 1_000_000, "objective": 0.5, "nmi_prev": 0.6, "nmi_labels": None,
        "reassigned": 0.3, "empty": 0, "largest_share": 0.001, "entropy": 9.1, "sizes": sizes, "bank_age": 10.0, "iterations": 20, "seconds": 60.0,
        "stood_s": 60.0,
    }


def used(pid):
    """CPU seconds and resident MiB."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    with open(f"/proc/{pid}/statm") as file:
        pages = int(file.read().split()[1])
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGESIZE") / 2**20


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--shoal", default=os.path.join(ROOT, "target", "release", "shoal"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = pathlib.Path(folder)
        (run / "pipeline.toml").write_text('[stream]\nshards = ["shards/photos-000000.tar"]\n')
        with open(run / "metrics.jsonl", "w") as file:
            for at in range(STEPS):
                if at % (STEPS // CYCLES) == 0:
                    file.write(json.dumps(cycle(at * CYCLES // STEPS)) + "\n")
                file.write(json.dumps(step(at)) + "\n")
        size = (run / "metrics.jsonl").stat().st_size / 1e6
        child = subprocess.Popen([options.shoal, "serve", folder, "--address", "127.0.0.1:0"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        url = re.search(r"http://[\d.:]+", child.stderr.readline())[0]
        started = time.monotonic()
        urllib.request.urlopen(url + "/api/state").read()
        first = time.monotonic() - started
        before, _ = used(child.pid)
        started, asked = time.monotonic(), 0
        while time.monotonic() - started < options.seconds:
            urllib.request.urlopen(url + "/api/state").read()
            urllib.request.urlopen(url + "/api/curves").read()
            asked += 1
            time.sleep(2)
        took = time.monotonic() - started
        after, memory = used(child.pid)
        child.terminate()
        child.wait()
    print(f"{size:.0f} MB of records: first answer after {first:.1f} s; then {asked} looks in {took:.0f} s took {after - before:.2f} CPU seconds "
          f"({100 * (after - before) / took:.2f} % of a core); {memory:.0f} MiB in all")


if __name__ == "__main__":
    main()
