#!/usr/bin/env python3
"""Makes the shards of ops/bench/ingest.sh: JPEGs as YFCC100M's copies are, 500 pixels on the longer side.

Usage: ingest_data.py PACKAGES OUT [--samples 2000] [--shards 8]      needs: pillow

In: a folder with unpacked Debian packages of wallpapers, one a subfolder. Out: OUT/bench-NNNNNN.tar, WebDataset samples
of a .jpg and a .cls. Every sample is another cut of one of the photographs that ops/data/photos.tsv allows, reduced from
at least twice its size, baseline, 4:2:0. All choices hang on a seed.
"""

import argparse
import io
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "data"))

import originals
import tarball
from PIL import Image

LONGEST = 500
QUALITIES = (92, 95, 97)


def cut(image, chance):
    """A random part of a large photograph, reduced to 500 pixels, as the bytes of a JPEG."""
    short, long = chance.choice(((333, 500), (375, 500), (375, 500), (281, 500), (500, 500)))
    portrait = chance.random() < 0.3
    width, height = (short, long) if portrait else (long, short)
    largest = min(image.width / width, image.height / height)
    scale = chance.uniform(min(2.0, largest), largest)
    box_width, box_height = width * scale, height * scale
    left, top = chance.uniform(0, image.width - box_width), chance.uniform(0, image.height - box_height)
    box = (left, top, left + box_width, top + box_height)
    small = image.resize((width, height), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    out = io.BytesIO()
    small.save(out, "JPEG", quality=chance.choice(QUALITIES), subsampling="4:2:0", optimize=True)
    return out.getvalue()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packages", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--shards", type=int, default=8)
    options = parser.parse_args()

    Image.MAX_IMAGE_PIXELS = None  # the wallpapers are large, and known
    store = originals.Originals(options.packages)
    photos = [photo for photo in originals.allow_list() if (options.packages / photo["package"]).is_dir()]
    jpegs = []
    for number, photo in enumerate(photos):
        image = store.load(photo).convert("RGB")
        chance = random.Random(photo["id"])
        share = len(range(number, options.samples, len(photos)))
        jpegs += [cut(image, chance) for _ in range(share)]
    random.Random(1).shuffle(jpegs)

    options.out.mkdir(parents=True, exist_ok=True)
    for shard in range(options.shards):
        members = []
        for sample in range(shard, len(jpegs), options.shards):
            members += [(f"{sample:06}.jpg", jpegs[sample]), (f"{sample:06}.cls", str(sample % 1000).encode())]
        (options.out / f"bench-{shard:06}.tar").write_bytes(tarball.archive(members))
    mean = sum(map(len, jpegs)) / len(jpegs)
    print(f"{len(jpegs)} JPEGs of {LONGEST} pixels from {len(photos)} photographs, {mean / 1000:.0f} kB on average")


if __name__ == "__main__":
    main()
