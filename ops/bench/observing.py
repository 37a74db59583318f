#!/usr/bin/env python3
"""What it costs to be watched: the demo with everything that looks at it, against the demo with nothing.

    ops/bench/observing.py [--rounds 5] [--steps 450] [--shoal target/release/shoal]

Nothing: no TensorBoard, no pictures, no page. Everything: all of these, with a client that does what an open page does (state and curves every
two seconds, clusters and photographs after each clustering) and Prometheus' question every five seconds. The runs alternate. Printed are images
a second of the medians and their ratio, and, since runs on a busy machine differ by more than that, the share of the CPU time of the whole
process that the watching threads took: they are known by their priority.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import tempfile
import threading
import time
import urllib.request

ROOT = os.path.realpath(os.path.join(os.path.dirname(__file__), "..", ".."))
NICE = 10
NOTHING = ("observe.tensorboard=false", "observe.pictures=false")
EVERYTHING = ("observe.page=127.0.0.1:0",)


def get(url, path):
    with urllib.request.urlopen(url + path, timeout=60) as answer:
        return answer.read()


def watch(url, ended):
    """Does what an open page does, and what Prometheus does."""
    cycle, asked = None, 0.0
    while not ended.is_set():
        try:
            state = json.loads(get(url, "/api/state"))
            get(url, "/api/curves")
            if time.monotonic() - asked > 5:
                get(url, "/metrics")
                asked = time.monotonic()
            if state["cycle"] and state["cycle"]["step"] != cycle:
                cycle = state["cycle"]["step"]
                clusters = json.loads(get(url, "/api/clusters?count=12"))["clusters"]
                ids = [member["id"] for cluster in clusters for member in cluster["members"]]
                get(url, "/api/thumbnails?ids=" + ",".join(ids))
        except OSError:
            pass  # the run has ended, or is about to begin
        ended.wait(2)


def cpu_seconds(pid):
    """CPU time of the threads that are alive, by whether they have the priority of watching."""
    watching, others = {}, {}
    for task in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{task}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        (watching if int(fields[16]) == NICE else others)[task] = seconds
    return watching, others


def run(options, settings):
    """Images a second, and CPU seconds of watching and of all."""
    watching, others, ended = {}, {}, threading.Event()
    with tempfile.TemporaryDirectory() as folder:
        command = [os.path.abspath(options.shoal), "pretrain", "demo", "--run", folder + "/run", "--no-bar", "--steps", str(options.steps)]
        command += [word for setting in settings for word in ("--set", setting)]
        child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

        def listen():
            for line in child.stderr:
                if found := re.search(r"page: (http://[\d.:]+)", line):
                    threading.Thread(target=watch, args=(found[1], ended), daemon=True).start()

        threading.Thread(target=listen, daemon=True).start()
        while child.poll() is None:
            try:
                found = cpu_seconds(child.pid)
                watching.update(found[0])
                others.update(found[1])
            except OSError:
                pass  # it has just ended
            time.sleep(0.1)
        ended.set()
        text = child.stdout.read()
        if child.returncode:
            raise SystemExit(f"the run ended with {child.returncode}")
    rate = int(re.search(r"\((\d+) a second\)", text)[1])
    return rate, sum(watching.values()), sum(watching.values()) + sum(others.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=450)
    parser.add_argument("--shoal", default=os.path.join(ROOT, "target", "release", "shoal"))
    options = parser.parse_args()
    rates, shares = {"nothing": [], "everything": []}, []
    for number in range(options.rounds):
        # whoever comes first in a round finds a cooler machine: they take turns
        ways = [("nothing", NOTHING), ("everything", EVERYTHING)]
        for name, settings in ways if number % 2 == 0 else reversed(ways):
            rate, watching, everything = run(options, settings)
            rates[name].append(rate)
            if name == "everything":
                shares.append(watching / everything)
            print(f"round {number + 1}, {name}: {rate} images/s, {watching:.2f} of {everything:.1f} CPU seconds to watch", flush=True)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    print(f"median images/s: {medians['nothing']} with nothing, {medians['everything']} with everything: ratio {medians['everything'] / medians['nothing']:.3f}")
    print(f"median share of CPU time to watch: {100 * statistics.median(shares):.2f} %")


if __name__ == "__main__":
    main()
