"""The means over seeds of ops/bench/ablation.tsv, which ablation.sh writes, as a Markdown table on stdout."""

import collections
import csv
import os
import statistics

KEYS = ("steps", "head", "cycle", "balance", "k")


def cell(rows, column):
    values = [float(row[column]) for row in rows if row[column]]
    if not values:
        return ""
    digits = 3 if max(values) <= 1 else 2
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def main():
    with open(os.path.join(os.path.dirname(__file__), "ablation.tsv"), newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    groups = collections.defaultdict(list)
    for row in rows:
        groups[tuple(row[key] for key in KEYS)].append(row)
    print("| steps | head | cycle | balance | k | seeds | k-NN, % | linear, % | NMI with labels | NMI to the cycle before |")
    print("|" + "---|" * 10)
    for key, found in groups.items():
        measures = [cell(found, column) for column in ("knn", "linear", "nmi_labels", "nmi_prev")]
        print("| " + " | ".join([*key, str(len(found)), *measures]) + " |")


if __name__ == "__main__":
    main()
