"""Writes the shards of damage: what a crawl really holds, small enough to read in a test.

In: the folder with the unpacked packages (six public-domain photographs of them are used). Out: shards/damage.tar, one sample
for each kind of damage under a telling name, and three tars that are damaged themselves. What a reader should make of
each is in shards/README.md. The photographs are 160 pixels wide.
"""

import argparse
import io
import random
import struct
import tarfile
import zlib
from pathlib import Path

import numpy
from PIL import Image

import originals
import png
import tarball

WIDTH = 160
PHOTOS = {
    "panda": "gcompris-erase-red-panda",
    "kingfisher": "gcompris-erase-kingfisher",
    "crab": "gcompris-erase-crab",
    "cow": "gcompris-farm-animals-cow",
    "duck": "gcompris-farm-animals-duck",
    "owl": "gcompris-farm-animals-owl",
}
HTML = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body>No such photo.</body></html>\n"
TEXT = b"This photo is no longer available.\n"


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("packages", type=Path, help="folder with one unpacked package a subfolder")
    arguments.add_argument("out", type=Path, help="the folder shards/")
    options = arguments.parse_args()

    rows = {row["id"]: row for row in originals.allow_list()}
    store = originals.Originals(options.packages)
    photos = {}
    for name, parent in PHOTOS.items():
        image = store.load(rows[parent])
        photos[name] = image.resize((WIDTH, round(WIDTH * image.height / image.width)), Image.Resampling.LANCZOS)

    (options.out / "damage.tar").write_bytes(damaged_samples(photos))
    (options.out / "damage-truncated.tar").write_bytes(truncated(photos))
    (options.out / "damage-cut-at-boundary.tar").write_bytes(cut_at_boundary(photos))
    (options.out / "damage-garbage-header.tar").write_bytes(garbage_header(photos))


def damaged_samples(photos):
    panda, kingfisher = photos["panda"], photos["kingfisher"]
    good = jpeg(panda)
    members = [
        ("good.jpg", good),
        ("good.json", b'{"parent":"%s"}' % PHOTOS["panda"].encode()),
        ("truncated-60-percent.jpg", good[: len(good) * 60 // 100]),
        ("png-named.jpg", encode(photos["crab"].quantize(64), "PNG")),
        ("cmyk.jpg", jpeg(photos["cow"].convert("CMYK"))),
        ("gray.jpg", jpeg(photos["duck"].convert("L"))),
        ("sixteen-bit.png", sixteen_bit(photos["owl"])),
        ("transparent.png", encode(with_transparency(kingfisher), "PNG")),
        ("palette.png", encode(photos["crab"].quantize(32), "PNG")),
        ("exif-orientation-6.jpg", lying_on_its_side(photos["cow"])),
        ("exif-broken.jpg", with_broken_exif(jpeg(photos["duck"]))),
        ("animated.gif", animated(panda, kingfisher)),
        ("modern.webp", encode(photos["owl"], "WEBP", quality=75)),
        ("apart.jpg", jpeg(photos["crab"])),
        ("zero-bytes.jpg", b""),
        ("html-named.jpg", HTML),
        ("text-named.png", TEXT),
        ("bomb-64000.png", bomb_without_end()),
        ("bomb-complete-20000.png", bomb_complete()),
        ("bomb-header-65000.jpg", claim_size(good, 65_000, 65_000)),
        ("bomb-canvas-64000.gif", bomb_canvas()),
        ("only-json.json", b'{"note":"the image of this sample is missing"}'),
        ("repeated-extension.jpg", jpeg(photos["cow"])),
        ("repeated-extension.jpg", jpeg(photos["owl"])),
        ("apart.jpg", jpeg(photos["duck"])),
        ("._mac.jpg", b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(58)),
        ("mac.jpg", jpeg(kingfisher)),
        ("__meta__.json", b'{"shard":"damage"}'),
        ("folder.with.dots/", None),
        ("folder.with.dots/inside.jpg", jpeg(photos["crab"])),
        ("README", TEXT),
        ("long-" + "name-" * 40 + "end.jpg", jpeg(photos["duck"])),
        ("UPPER-CASE.JPG", jpeg(photos["owl"])),
        ("last-good.jpg", jpeg(kingfisher)),
    ]
    blocks = []
    for name, content in members:
        if content is None:
            blocks.append(tarball.member(name.rstrip("/"), b"", tarfile.DIRTYPE))
        else:
            blocks.append(tarball.member(name, content))
    return b"".join(blocks) + tarball.END


def truncated(photos):
    """Three whole samples; the fourth breaks off in the middle of its JPEG."""
    names = ("panda", "kingfisher", "crab", "cow")
    members = [tarball.member(f"{name}.jpg", jpeg(photos[name])) for name in names]
    return b"".join(members[:3]) + members[3][: len(members[3]) // 2]


def cut_at_boundary(photos):
    """Three samples, the last without its .json, and then nothing: no header is broken, only the end marker is missing."""
    members = []
    for name in ("panda", "kingfisher", "crab"):
        members.append(tarball.member(f"{name}.jpg", jpeg(photos[name])))
        members.append(tarball.member(f"{name}.json", b'{"parent":"%s"}' % PHOTOS[name].encode()))
    return b"".join(members[:-1])


def garbage_header(photos):
    """Four samples; noise lies where the header of the second should be. The two after it are good."""
    names = ("panda", "kingfisher", "crab", "cow")
    members = [tarball.member(f"{name}.jpg", jpeg(photos[name])) for name in names]
    members[1] = random.Random("garbage").randbytes(512) + members[1][512:]
    return b"".join(members) + tarball.END


def encode(image, kind, **how):
    out = io.BytesIO()
    image.save(out, kind, **how)
    return out.getvalue()


def jpeg(image, **how):
    return encode(image, "JPEG", quality=80, optimize=True, **how)


def sixteen_bit(image):
    """A PNG of 16 bits a channel, half the size of the others."""
    values = numpy.asarray(image.resize((image.width // 2, image.height // 2))).astype(">u2") * 257
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    pixels = png.chunk(b"IDAT", zlib.compress(rows, 9))
    return png.SIGNATURE + png.header(width, height, 16, 2) + pixels + png.chunk(b"IEND", b"")


def with_transparency(image):
    """Opaque at the left, fully transparent at the right."""
    image = image.resize((image.width // 2, image.height // 2)).convert("RGBA")
    fade = Image.linear_gradient("L").rotate(-90).resize(image.size)
    image.putalpha(fade)
    return image


def lying_on_its_side(image):
    """Stored a quarter turn to the left, with the EXIF mark that says: turn it a quarter to the right."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(image.transpose(Image.Transpose.ROTATE_90), exif=exif.tobytes())


def with_broken_exif(content):
    """An EXIF block whose first directory claims 65,535 entries beyond its end; the pixels are whole."""
    block = b"Exif\0\0" + b"II*\0" + struct.pack("<I", 8) + b"\xff\xff" + b"\x12\x01\x03\x00"
    return content[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + content[2:]


def animated(*images):
    frames = [image.resize((80, 45)).quantize(32) for image in images]
    return encode(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=200, loop=0)


def bomb_without_end():
    """A PNG of 64,000 x 64,000 gray pixels whose data stops after 4 kB, which would still inflate to 4 MB."""
    inflatable = zlib.compress(bytes(8_000_000), 9)[:4096]
    return png.SIGNATURE + png.header(64_000, 64_000, 8, 0) + png.chunk(b"IDAT", inflatable) + png.chunk(b"IEND", b"")


def bomb_complete():
    """A flawless PNG of 20,000 x 20,000 one-bit pixels in 49 kB: 400 MB once each pixel has a byte."""
    side = 20_000
    packer = zlib.compressobj(9)
    row = bytes(1 + side // 8)
    rows = b"".join(packer.compress(row * 100) for _ in range(side // 100)) + packer.flush()
    return png.SIGNATURE + png.header(side, side, 1, 0) + png.chunk(b"IDAT", rows) + png.chunk(b"IEND", b"")


def claim_size(content, width, height):
    """The same JPEG with another size in its frame header."""
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + struct.pack(">HH", height, width) + content[at + 4 :]


def bomb_canvas():
    """A whole GIF of 35 bytes: a canvas of 64,000 x 64,000 and on it a single pixel."""
    screen = b"GIF89a" + struct.pack("<HHBBB", 64_000, 64_000, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    frame = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return screen + frame + b";"


if __name__ == "__main__":
    main()
