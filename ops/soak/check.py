"""Proves of a soak that every sample came exactly once, and sums it up.

Usage: check.py FOLDER SHARDS_FOLDER LIST_FILE

It may be run at any time: only what `position.json` vouches for is read. The truth is Python's: the members of the tars by
`tarfile`, grouped by the key. The digests of the pixels must be those of an undisturbed read from disk
(`reference/samples.log`). Of each pass that is over, every sample of every shard must be there once; of the pass under way, none twice. What is lost must
be what cannot be had: `gone.tar` (404), and `short.tar` behind its cut. Exit code 1 if anything else is found.
"""

import collections
import json
import re
import statistics
import sys
import tarfile
from pathlib import Path

LOST_FOR_GOOD = {"gone.tar": {"not_found"}, "short.tar": {"truncated_shard"}}


def samples_of(path):
    """Byte offsets of the samples in a tar, by the rules of WebDataset."""
    offsets, last = [], None
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                key = re.sub(r"\.[^/]*$", "", member.name)
                if member.isfile() and key != last:
                    offsets.append(member.offset)
                    last = key
    except tarfile.ReadError:
        pass
    if path.name == "short.tar":
        offsets.pop()  # nobody knows whether more of it would have come
    return offsets


def file_of(shard):
    return re.sub(r"^v\d+-", "", shard)


def read_log(folder):
    position = json.loads((folder / "position.json").read_text())
    with open(folder / "samples.log", "rb") as log:
        text = log.read(position["log_bytes"]).decode()
    for line in text.splitlines():
        number, shard, offset, digest = line.split(" ")
        yield int(number), shard, int(offset), digest


def read_ledger(path):
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            yield json.loads(line)
        except ValueError:
            continue  # the line in flight


def megabytes(kilobytes):
    return f"{kilobytes / 1024:.0f} MiB"


def memory(path):
    """The resident size of the program: over all, and its drift in the process that lived longest."""
    by_process = collections.defaultdict(list)
    if path.exists():
        for line in path.read_text().splitlines():
            fields = line.split()
            if len(fields) == 3:
                by_process[fields[1]].append(int(fields[2]))
    sizes = [size for sizes in by_process.values() for size in sizes]
    if not sizes:
        return "not sampled"
    text = f"min {megabytes(min(sizes))}, median {megabytes(statistics.median(sizes))}, max {megabytes(max(sizes))}"
    longest = max(by_process.values(), key=len)[3:]  # it fills its buffers first
    if len(longest) >= 8:
        quarter = len(longest) // 4
        first, last = statistics.median(longest[:quarter]), statistics.median(longest[-quarter:])
        text += (
            f"; in the process that lived longest ({len(longest) + 3} samples): median of the first quarter "
            f"{megabytes(first)}, of the last {megabytes(last)}, {100 * (last / first - 1):+.1f} %"
        )
    return text


def main():
    folder, shards_folder, list_file = map(Path, sys.argv[1:])
    shards = [line.rsplit("/", 1)[1] for line in list_file.read_text().split()]
    truth = {path.name: samples_of(path) for path in shards_folder.glob("*.tar")}
    truth["packed.tar.gz"] = truth["large.tar"]
    truth["gone.tar"] = []
    pixels = {(shard, offset): digest for _, shard, offset, digest in read_log(folder / "reference")}

    passes = collections.defaultdict(collections.Counter)
    strangers, altered, images = [], [], 0
    known = {name: set(offsets) for name, offsets in truth.items()}
    for number, shard, offset, digest in read_log(folder / "run"):
        images += 1
        passes[number][shard, offset] += 1
        name = file_of(shard)
        if offset not in known[name]:
            strangers.append((number, shard, offset))
        elif digest != pixels[name, offset]:
            altered.append((number, shard, offset, digest))

    duplicates = sum(count - 1 for seen in passes.values() for count in seen.values() if count > 1)
    last = max(passes, default=-1)
    missing = collections.Counter()
    for number in range(last):
        for shard in shards:
            lacking = sum((shard, offset) not in passes[number] for offset in truth[file_of(shard)])
            if lacking:
                missing[number, shard] = lacking

    expected, unexpected, named, folded = collections.Counter(), collections.Counter(), set(), -1
    for entry in read_ledger(folder / "run" / "ledger.jsonl"):
        kind = entry.get("kind", "loss")
        if kind == "sum":  # older passes in one line
            folded = entry["through_pass"]
            for reason, count in entry["losses"].items():
                (expected if reason in set().union(*LOST_FOR_GOOD.values()) else unexpected)[reason] += count
        elif kind == "loss":
            name = entry["shard"].rsplit("/", 1)[1]
            named.add((entry["pass"], name))
            is_expected = entry["reason"] in LOST_FOR_GOOD.get(file_of(name), ())
            (expected if is_expected else unexpected)[entry["reason"]] += 1
    # what is lost for good must be named in each pass that is over
    unnamed = sum((number, name) not in named for number in range(folded + 1, last) for name in LOST_FOR_GOOD)

    server = json.loads((folder / "server.json").read_text())
    events = (folder / "events.log").read_text().splitlines() if (folder / "events.log").exists() else []
    kills = sum(line.startswith("kill ") for line in events)
    deaths = [line for line in events if line.startswith("ended ")]
    injected = ", ".join(f"{name} {count}" for name, count in sorted(server["faults"].items()))
    a_pass = sum(len(truth[file_of(shard)]) for shard in shards)
    print(f"images            {images:,} ({last} whole passes over {len(shards)} shards, {a_pass:,} samples each)")
    print(f"bytes sent        {server['bytes'] / 1e9:.2f} GB in {server['requests']:,} requests")
    print(f"faults injected   {sum(server['faults'].values()):,}: {injected}")
    print(f"kills survived    {kills}")
    print(f"duplicates        {duplicates}")
    print(f"missing samples   {sum(missing.values()):,} in {len(missing)} shards of whole passes")
    print(f"strangers         {len(strangers)} samples that no shard has; {len(altered)} with other pixels")
    print(f"losses, injected  {dict(expected)} (gone.tar and short.tar, each pass); not named: {unnamed}")
    print(f"losses, others    {dict(unexpected)}")
    print(f"resident memory   {memory(folder / 'rss.log')}")
    for death in deaths:
        print(f"THE PROGRAM ENDED BY ITSELF: {death}")
    for what in (list(missing.items()), strangers, altered):
        for example in what[:3]:
            print(f"  for one: {example}")
    is_good = not (duplicates or missing or strangers or altered or unexpected or deaths or unnamed) and images > 0
    print("verdict           " + ("every sample exactly once" if is_good else "NOT GOOD"))
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
