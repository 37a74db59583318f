#!/usr/bin/env python3
"""One peer of ops/bench/ingest.sh: batches of 256 views of 224 pixels, uint8, from tars of JPEGs, without end.

Usage: ingest_peer.py webdataset|spdl|litdata --views both|train --how WAY --workers N [--seconds 5] SHARD...

Prints one line of JSON: images, seconds (after a short warm-up), seconds to the first batch since INGEST_STARTED. The work
is that of shoal's decoders: a random resized crop with a mirroring, and with `both` the center crop as well, each image
decoded once where the way allows it. No shuffle buffer anywhere.

Ways: `tensor` (torchvision's decode_image and v2 transforms), `pillow` (PIL and v2 transforms), `ffmpeg` (SPDL alone: crop
and scale are ffmpeg's filters, the image is decoded once a view), `litdata` reads shards that --convert wrote.
"""

import argparse
import io
import json
import math
import os
import random
import time
import urllib.request

BATCH = 256
SIZE = 224


def torchvision_views(way, both):
    """bytes -> [views, 3, 224, 224] uint8."""
    import torch
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms import v2

    train = v2.Compose([v2.RandomResizedCrop(SIZE, antialias=True), v2.RandomHorizontalFlip()])
    center = v2.Compose([v2.Resize(256, antialias=True), v2.CenterCrop(SIZE)])
    to_tensor = v2.PILToTensor()

    def views(data):
        if way == "pillow":
            from PIL import Image

            image = Image.open(io.BytesIO(data)).convert("RGB")
            made = [to_tensor(train(image))] + ([to_tensor(center(image))] if both else [])
        else:
            image = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
            made = [train(image)] + ([center(image)] if both else [])
        return torch.stack(made)

    return views


def webdataset_batches(options):
    import torch
    import webdataset

    views = torchvision_views(options.how, options.views == "both")
    data = webdataset.WebDataset(options.shards, shardshuffle=False, empty_check=False)
    data = data.to_tuple("jpg").map(lambda sample: views(sample[0]))
    data = data.batched(BATCH, collation_fn=torch.stack, partial=False).repeat()
    return iter(torch.utils.data.DataLoader(data, batch_size=None, num_workers=options.workers))


def random_box(width, height):
    """torchvision's RandomResizedCrop with its defaults."""
    for _ in range(10):
        area = width * height * random.uniform(0.08, 1.0)
        aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return random.randint(0, width - w), random.randint(0, height - h), w, h
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side, side


def spdl_batches(options):
    import numpy
    import spdl.io
    import torch
    from spdl.pipeline import PipelineBuilder

    both = options.views == "both"
    torch.set_num_threads(1)
    if options.how == "tensor":
        from torchvision.transforms import v2

        train = v2.Compose([v2.RandomResizedCrop(SIZE, antialias=True), v2.RandomHorizontalFlip()])
        center = v2.Compose([v2.Resize(256, antialias=True), v2.CenterCrop(SIZE)])
    plain = spdl.io.get_video_filter_desc(pix_fmt="rgb24")

    def samples():
        while True:
            for shard in options.shards:
                source = urllib.request.urlopen(shard) if shard.startswith("http") else open(shard, "rb")
                with source as file:
                    for name, content in spdl.io.iter_tarfile(file):
                        if name.endswith(".jpg"):
                            yield bytes(content)

    def cut(packets, box, mirror):
        x, y, w, h = box
        steps = [f"crop={w}:{h}:{x}:{y}", f"scale={SIZE}:{SIZE}:flags=bilinear", "format=pix_fmts=rgb24"]
        if mirror:
            steps.append("hflip")
        frames = spdl.io.decode_packets(packets, filter_desc=",".join(steps))
        return spdl.io.to_numpy(spdl.io.convert_frames(frames))

    def by_ffmpeg(data):
        packets = spdl.io.demux_image(data)
        codec = packets.codec
        width, height = codec.width, codec.height
        made = []
        if both:
            side = min(width, height) * SIZE // 256
            middle = ((width - side) // 2, (height - side) // 2, side, side)
            made.append(cut(packets.clone(), middle, False))
        made.append(cut(packets, random_box(width, height), random.random() < 0.5))
        return numpy.stack(made)

    def by_tensor(data):
        buffer = spdl.io.load_image(data, filter_desc=plain)
        image = torch.from_numpy(spdl.io.to_numpy(buffer)).permute(2, 0, 1)
        return torch.stack([train(image)] + ([center(image)] if both else []))

    work, stack = (by_ffmpeg, numpy.stack) if options.how == "ffmpeg" else (by_tensor, torch.stack)
    builder = PipelineBuilder().add_source(samples()).pipe(work, concurrency=options.workers)
    pipeline = builder.aggregate(BATCH).pipe(stack).add_sink(2).build(num_threads=options.workers + 1)
    pipeline.start()
    return pipeline.get_iterator()


def shard_samples(shard):
    import tarfile

    with tarfile.open(shard) as archive:
        for member in archive:
            if member.name.endswith(".jpg"):
                yield {"image": archive.extractfile(member).read()}


def convert(options):
    import litdata

    shards = [os.path.abspath(shard) for shard in options.shards]
    litdata.optimize(fn=shard_samples, inputs=shards, output_dir=options.convert, chunk_bytes="16MB", num_workers=1)


def litdata_batches(options):
    import litdata

    views = torchvision_views(options.how, options.views == "both")

    class Views(litdata.StreamingDataset):
        def __getitem__(self, index):
            return views(super().__getitem__(index)["image"])

    def endless():
        data = Views(options.shards[0], shuffle=False, drop_last=True)
        loader = litdata.StreamingDataLoader(data, batch_size=BATCH, num_workers=options.workers, drop_last=True)
        while True:
            yield from loader

    return endless()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peer", choices=["webdataset", "spdl", "litdata"])
    parser.add_argument("--views", choices=["both", "train"], default="both")
    parser.add_argument("--how", choices=["tensor", "pillow", "ffmpeg"], default="tensor")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--convert", metavar="FOLDER", help="write LitData's own shards there, and end")
    parser.add_argument("shards", nargs="+")
    options = parser.parse_args()
    if options.convert:
        convert(options)
        return
    makers = {"webdataset": webdataset_batches, "spdl": spdl_batches, "litdata": litdata_batches}
    batches = makers[options.peer](options)
    shape = tuple(next(batches).shape)
    views = 2 if options.views == "both" else 1
    assert shape[:2] == (BATCH, views) and sorted(shape[2:]) == [3, SIZE, SIZE], shape
    first = time.time() - float(os.environ.get("INGEST_STARTED", time.time()))
    warming, made = time.monotonic(), 0
    while made < 4 or time.monotonic() - warming < 1.5:  # what workers made ahead while the first batch was awaited
        next(batches)
        made += 1
    images, started = 0, time.monotonic()
    while time.monotonic() - started < options.seconds:
        images += len(next(batches))
    seconds = time.monotonic() - started
    print(json.dumps({"images": images, "seconds": seconds, "first_batch_s": first}), flush=True)
    os._exit(0)  # workers of an endless loader need not be waited for


if __name__ == "__main__":
    main()
