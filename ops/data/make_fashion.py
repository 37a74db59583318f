"""Turns Fashion-MNIST into two shards: the first 20,000 images of its training set and the first 4,000 of its test set.

In: the folder with the unpacked package dataset-fashion-mnist. Out: shards/fashion-train.tar.zst and fashion-test.tar.zst,
each sample NNNNNN.png (28 x 28, 8-bit gray) and NNNNNN.cls (its class, 0 to 9, as text). The images keep the set's order.
"""

import argparse
import gzip
from pathlib import Path

import numpy
import zstandard

import png
import tarball

SETS = (("train", "train", 20_000), ("test", "t10k", 4_000))
FOLDER = "dataset-fashion-mnist/usr/share/datasets/fashion-mnist"


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("packages", type=Path, help="folder with one unpacked package a subfolder")
    arguments.add_argument("out", type=Path, help="the folder shards/")
    options = arguments.parse_args()

    for name, prefix, count in SETS:
        images = read_idx(options.packages / FOLDER / f"{prefix}-images-idx3-ubyte.gz", 3)[:count]
        labels = read_idx(options.packages / FOLDER / f"{prefix}-labels-idx1-ubyte.gz", 1)[:count]
        members = []
        for index, (image, label) in enumerate(zip(images, labels)):
            members += [(f"{index:06}.png", png.gray(image)), (f"{index:06}.cls", str(label).encode())]
        packed = zstandard.ZstdCompressor(level=22, write_checksum=True).compress(tarball.archive(members))
        (options.out / f"fashion-{name}.tar.zst").write_bytes(packed)


def read_idx(path, dimensions):
    """An IDX file of bytes: two zeros, type 8, the number of dimensions, each size in 32 bits, then the data."""
    content = gzip.decompress(path.read_bytes())
    if content[:4] != bytes([0, 0, 8, dimensions]):
        raise ValueError(f"{path}: not an IDX file of bytes with {dimensions} dimensions")
    sizes = numpy.frombuffer(content, ">u4", dimensions, 4)
    return numpy.frombuffer(content, numpy.uint8, offset=4 + 4 * dimensions).reshape(sizes)


if __name__ == "__main__":
    main()
