#!/usr/bin/env python3
"""The same work as ops/bench/decode.rs by Pillow and OpenCV: decode once, a center view and a random crop, one thread.

Usage: decode_peer.py [--size 224] [--runs 7] SHARD.tar...     needs: pillow, numpy, opencv-python-headless

Each way prints the median of its runs, which alternate, in images per second of the thread's CPU time. Pillow uses what a data loader would: `draft` (scaling inside
libjpeg by 1/2, 1/4, 1/8) and one `resize(box=...)` a view. OpenCV has no antialiased crop-and-resize; INTER_AREA is nearest to it.
"""

import argparse
import io
import math
import random
import statistics
import tarfile
import time

import cv2
import numpy
from PIL import Image

cv2.setNumThreads(1)


def read_jpegs(shards):
    for shard in shards:
        with tarfile.open(shard) as archive:
            for member in archive:
                data = archive.extractfile(member).read() if member.isfile() else b""
                if data[:3] == b"\xff\xd8\xff":
                    yield data


def random_box(width, height, dice):
    """torchvision's RandomResizedCrop.get_params with its defaults."""
    for _ in range(10):
        area = width * height * dice.uniform(0.08, 1.0)
        aspect = math.exp(dice.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return dice.randint(0, width - w), dice.randint(0, height - h), w, h
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side, side


def boxes(width, height, dice):
    side = min(width, height) * 224 / 256
    center = (width - side) / 2, (height - side) / 2, side, side
    return center, random_box(width, height, dice), dice.random() < 0.5


def pillow(data, size, dice, draft):
    image = Image.open(io.BytesIO(data))
    width, height = image.size
    center, crop, mirror = boxes(width, height, dice)
    if draft:
        # Pillow keeps both sides at least as large as asked: what the smaller box needs, for the whole picture.
        need = size / min(*center[2:], *crop[2:])
        image.draft("RGB", (math.ceil(width * need), math.ceil(height * need)))
    image = image.convert("RGB")
    scale = image.width / width
    views = []
    for x, y, w, h in (center, crop):
        box = (x * scale, y * scale, min((x + w) * scale, image.width), min((y + h) * scale, image.height))
        views.append(image.resize((size, size), Image.Resampling.BILINEAR, box=box))
    if mirror:
        views[1] = views[1].transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return [numpy.asarray(view) for view in views]


def opencv(data, size, dice):
    image = cv2.cvtColor(cv2.imdecode(numpy.frombuffer(data, numpy.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    height, width = image.shape[:2]
    center, crop, mirror = boxes(width, height, dice)
    views = []
    for x, y, w, h in (map(round, center), crop):
        part = image[y : y + h, x : x + w]
        way = cv2.INTER_AREA if part.shape[0] > size else cv2.INTER_LINEAR
        views.append(cv2.resize(part, (size, size), interpolation=way))
    if mirror:
        views[1] = cv2.flip(views[1], 1)
    return views


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("shards", nargs="+")
    options = parser.parse_args()
    files = list(read_jpegs(options.shards))
    ways = {
        "Pillow, draft": lambda data, dice: pillow(data, options.size, dice, True),
        "Pillow, full": lambda data, dice: pillow(data, options.size, dice, False),
        "OpenCV": lambda data, dice: opencv(data, options.size, dice),
    }
    rates = {name: [] for name in ways}
    for run in range(options.runs + 1):
        for name, way in ways.items():
            dice = random.Random(31)
            started = time.thread_time()
            for data in files:
                way(data, dice)
            if run > 0:  # the first run warms caches
                rates[name].append(len(files) / (time.thread_time() - started))
    print(f"peers, {len(files)} JPEGs, two views of {options.size} pixels, per core, median of {options.runs} runs:")
    for name, values in rates.items():
        print(f"  {name:<14} {statistics.median(values):6.1f} images/s ({min(values):.1f} to {max(values):.1f})")


if __name__ == "__main__":
    main()
