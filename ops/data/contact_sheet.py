"""Draws the first images of shards as one PNG, to look at what is in them.

    python contact_sheet.py OUT.png SHARD.tar... [--columns 20] [--limit 230]
"""

import argparse
import io
import tarfile

from PIL import Image

CELL = 96


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("out")
    arguments.add_argument("shards", nargs="+")
    arguments.add_argument("--columns", type=int, default=20)
    arguments.add_argument("--limit", type=int, default=230, help="images a shard")
    options = arguments.parse_args()

    images = [image for shard in options.shards for image in read(shard, options.limit)]
    rows = -(-len(images) // options.columns)
    sheet = Image.new("RGB", (options.columns * CELL, rows * CELL), "white")
    for index, image in enumerate(images):
        row, column = divmod(index, options.columns)
        sheet.paste(image, (column * CELL, row * CELL))
    sheet.save(options.out)


def read(shard, limit):
    images = []
    with tarfile.open(shard) as archive:
        for member in archive:
            if member.name.endswith((".jpg", ".png")) and len(images) < limit:
                image = Image.open(io.BytesIO(archive.extractfile(member).read())).convert("RGB")
                image.thumbnail((CELL - 2, CELL - 2))
                images.append(image)
    return images


if __name__ == "__main__":
    main()
