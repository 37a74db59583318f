"""Reads every shard of shards/ with nothing but tarfile and Pillow and fails if it is not what shards/README.md says.

    python check.py shards/

Checked: every photograph decodes and is as small as promised, keys are unique, every sample has its .json or .cls, no
photograph fills a shard, the allow-list covers every parent, and the README names each file with its size and SHA-256.
"""

import argparse
import collections
import csv
import hashlib
import io
import json
import tarfile
from pathlib import Path

import zstandard
from PIL import Image

FASHION = {"train": 20_000, "test": 4_000}
LIMIT = 26_000_000


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("shards", type=Path)
    shards = arguments.parse_args().shards

    check_photos(shards)
    for name, count in FASHION.items():
        check_fashion(shards / f"fashion-{name}.tar.zst", count)
    check_readme(shards)


def check_photos(shards):
    with open(shards / "PHOTOS.tsv", newline="", encoding="utf-8") as listing:
        rows = {row["id"]: row for row in csv.DictReader(listing, delimiter="\t", quoting=csv.QUOTE_NONE)}
    keys, crops = set(), collections.Counter()
    for shard in sorted(shards.glob("photos-*.tar")):
        parents = collections.Counter()
        for key, parts in samples(shard.read_bytes()).items():
            assert key not in keys, f"{shard.name}: {key} is there twice"
            assert set(parts) == {"jpg", "json"}, f"{shard.name}: {key} has {sorted(parts)}"
            keys.add(key)
            image = Image.open(io.BytesIO(parts["jpg"]))
            image.load()
            assert image.format == "JPEG" and max(image.size) <= 320, f"{shard.name}: {key} is {image.size}"
            facts = json.loads(parts["json"])
            row = rows[facts["parent"]]
            assert all(facts[name] == row[name] for name in ("package", "licence", "author")), f"{shard.name}: {key}"
            parents[facts["parent"]] += 1
        most = max(parents.values())
        assert most <= 12, f"{shard.name}: one photograph gives {most} samples"
        crops += parents
    assert crops == {name: int(row["crops"]) for name, row in rows.items()}, "PHOTOS.tsv miscounts"
    licences = collections.Counter(row["licence"] for row in rows.values())
    print(f"{len(keys)} samples of {len(crops)} photographs, {min(crops.values())} to {max(crops.values())} each")
    print(", ".join(f"{count} {licence}" for licence, count in licences.most_common()))


def check_fashion(path, count):
    content = zstandard.ZstdDecompressor().decompress(path.read_bytes())
    classes = collections.Counter()
    found = samples(content)
    assert len(found) == count, f"{path.name}: {len(found)} samples"
    for key, parts in found.items():
        image = Image.open(io.BytesIO(parts["png"]))
        image.load()
        assert (image.mode, image.size) == ("L", (28, 28)), f"{path.name}: {key}"
        classes[int(parts["cls"])] += 1
    assert sorted(classes) == list(range(10)), f"{path.name}: classes {sorted(classes)}"
    print(f"{path.name}: {count} samples, {min(classes.values())} to {max(classes.values())} of a class")


def check_readme(shards):
    text = (shards / "README.md").read_text(encoding="utf-8")
    total = 0
    for path in sorted(shards.iterdir()):
        content = path.read_bytes()
        total += len(content)
        if ".tar" not in path.name:
            continue
        digest = hashlib.sha256(content).hexdigest()
        line = f"| `{path.name}` | {len(content):,} | `{digest}` |"
        assert line in text, f"README.md lacks: {line}"
    assert total < LIMIT, f"{total:,} bytes in all"
    print(f"{total:,} bytes in all")


def samples(content):
    """{key: {extension: bytes}} of a tar, in order."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for member in archive:
            key, extension = member.name.split(".", 1)
            parts = found.setdefault(key, {})
            assert extension not in parts, f"{member.name} is there twice"
            parts[extension] = archive.extractfile(member).read()
    return found


if __name__ == "__main__":
    main()
