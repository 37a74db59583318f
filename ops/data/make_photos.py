"""Cuts the photographs of photos.tsv into the shards shards/photos-*.tar, a small stream that behaves like a large one.

In: the folder with the unpacked packages, the allow-list photos.tsv. Out: eight tars of 225 samples (NNNNNN.jpg and
NNNNNN.json) and PHOTOS.tsv, which names the licence, author, source and number of crops of every photograph.

A few photographs give many crops and most give few, as in a real crawl; samples of one photograph are scattered over all
shards. Every crop differs in place, scale and aspect, every file in size, quality and coding. Nothing is ever enlarged.
All choices hang on SEED, so that the same packages and the same Pillow give the same bytes.
"""

import argparse
import io
import json
import math
import random
from pathlib import Path

from PIL import Image, ImageStat

import originals
import tarball

SEED = 20180714
SAMPLES = 1800
SHARDS = 8
LONGEST_SIDES = (320, 256, 224, 192, 176, 160)
# Below this spread of grey levels a crop is a piece of empty sky.
LEAST_CONTRAST = 20.0


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("packages", type=Path, help="folder with one unpacked package a subfolder")
    arguments.add_argument("out", type=Path, help="the folder shards/")
    options = arguments.parse_args()

    photos = originals.allow_list()
    store = originals.Originals(options.packages)
    crops_of = share_out([store.size(photo) for photo in photos])

    samples = []
    for photo, crops in zip(photos, crops_of):
        image = store.load(photo)
        # A generator of its own for each photograph: a change to one leaves the others alone.
        chance = random.Random(f"{SEED} {photo['id']}")
        samples += [cut(image, photo, number, chance) for number in range(crops)]
    random.Random(SEED).shuffle(samples)
    write_shards(samples, options.out)
    write_listing(photos, crops_of, options.out / "PHOTOS.tsv")


def share_out(sizes):
    """How many crops each photograph gives: one at least, then a long tail up to what its pixels allow."""
    chance = random.Random(SEED + 1)
    limits = [crop_limit(size) for size in sizes]
    weights = [chance.paretovariate(1.1) for _ in sizes]
    crops = [1] * len(sizes)
    while sum(crops) < SAMPLES:
        open_for_more = [i for i, limit in enumerate(limits) if crops[i] < limit]
        chosen = chance.choices(open_for_more, [weights[i] for i in open_for_more])[0]
        crops[chosen] += 1
    return crops


def crop_limit(size):
    longest = max(size)
    if longest < 500:
        return 3
    return 12 if longest < 1500 else 30


def cut(image, photo, number, chance):
    """One sample: the JPEG and what is known of it. The first crop of a photograph is the whole of it."""
    side = chance.choice(LONGEST_SIDES)
    left, top, width, height = (0, 0, *image.size) if number == 0 else choose_box(image, side, chance)
    scale = min(1.0, side / max(width, height))
    small = (max(1, round(width * scale)), max(1, round(height * scale)))
    box = (left, top, left + width, top + height)
    pixels = image.resize(small, Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)

    out = io.BytesIO()
    pixels.save(
        out,
        "JPEG",
        # Most of the web sits near 75: the lowest of four draws leans that way.
        quality=min(chance.randint(70, 92) for _ in range(4)),
        progressive=chance.random() < 0.2,
        subsampling="4:4:4" if chance.random() < 0.05 else "4:2:0",
        optimize=True,
    )
    facts = {
        "parent": photo["id"],
        "package": photo["package"],
        "licence": photo["licence"],
        "author": photo["author"],
        "box": [left, top, width, height],
    }
    return out.getvalue(), json.dumps(facts, ensure_ascii=False, separators=(",", ":")).encode()


def choose_box(image, side, chance):
    """A box of random scale, aspect and place, large enough never to be enlarged and with something to see in it."""
    full_width, full_height = image.size
    # A small original still moves a little: its crops may go down to 0.7 of its sides.
    least = min(max(side / max(image.size), 0.3), 0.7)
    for _ in range(20):
        part = math.exp(chance.uniform(math.log(least), 0.0))
        stretch = math.exp(chance.uniform(-0.35, 0.35))
        width = min(full_width, round(full_width * part * stretch))
        height = min(full_height, round(full_height * part / stretch))
        left = chance.randint(0, full_width - width)
        top = chance.randint(0, full_height - height)
        piece = image.crop((left, top, left + width, top + height))
        piece.thumbnail((64, 64))
        if ImageStat.Stat(piece.convert("L")).stddev[0] >= LEAST_CONTRAST:
            break
    return left, top, width, height


def write_shards(samples, out):
    per_shard = -(-len(samples) // SHARDS)
    for shard in range(SHARDS):
        members = []
        for index in range(shard * per_shard, min((shard + 1) * per_shard, len(samples))):
            jpeg, facts = samples[index]
            members += [(f"{index:06}.jpg", jpeg), (f"{index:06}.json", facts)]
        (out / f"photos-{shard:06}.tar").write_bytes(tarball.archive(members))


def write_listing(photos, crops_of, path):
    columns = ["id", "crops", "package", "path", "licence", "author", "source", "note"]
    lines = ["\t".join(columns)]
    for photo, crops in zip(photos, crops_of):
        lines.append("\t".join(str(crops) if column == "crops" else photo[column] for column in columns))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
