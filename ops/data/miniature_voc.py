"""Makes a miniature of PASCAL VOC, in the layout of its kit, of the photographs in shards/.

    python miniature_voc.py OUT

In: shards/photos-*.tar, and miniature_voc.tsv beside this file (its head says what is in it). Out: OUT/VOCdevkit/VOC2007 and
VOC2012 with JPEGImages, Annotations, ImageSets/Main and Segmentation, SegmentationClass; VOC2012 holds the images of Segmentation
alone. The standard library is enough, and the same files come out each time. Images are called as their samples; the photographs keep
their licences (shards/PHOTOS.tsv).

As in the kit, pixels of boxes count from 1, an object that the edge of the image cuts is `truncated`, masks are 8-bit palette PNGs,
and 255 in them is what counts neither way: the outlines, and what is difficult. Of an object that a crop cuts, less than a quarter of its box is
difficult, and less than a twentieth is left out.
"""

import json
import struct
import sys
import tarfile
import zlib
from pathlib import Path
from xml.sax.saxutils import escape

CLASSES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep sofa train tvmonitor"
).split()
VOID = 255


def main():
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    kit = Path(sys.argv[1]) / "VOCdevkit"
    root = Path(__file__).resolve().parents[2]
    images, objects = read(root / "ops/data/miniature_voc.tsv")
    samples = load(sorted((root / "shards").glob("photos-*.tar")), set(images) | set(objects))

    found = {}
    for name in images:
        parent = samples[name][1]["parent"]
        (whole,) = [key for key in objects if samples[key][1]["parent"] == parent]
        found[name] = [seen for thing in objects[whole] if (seen := on_sample(thing, samples[whole], samples[name]))]

    for year, chosen in (
        ("VOC2007", list(images)),
        ("VOC2012", [name for name, (_, segmentation) in images.items() if segmentation != "-"]),
    ):
        write(kit / year, sorted(chosen), images, found, samples)


def read(path):
    """Splits by sample; objects by the sample of their whole photograph."""
    images, objects = {}, {}
    for line in path.read_text(encoding="utf-8").splitlines():
        kind, *fields = line.split("#")[0].rstrip().split("\t")
        if kind == "image":
            name, main_split, segmentation = fields
            images[name] = (main_split, segmentation)
        elif kind == "object":
            name, label, difficult, box, mask = fields
            polygons = [] if mask == "-" else [[point(pair) for pair in part.split()] for part in mask.split(";")]
            thing = {"class": label, "difficult": difficult == "1", "box": point(box), "mask": polygons}
            objects.setdefault(name, []).append(thing)
        elif kind:
            sys.exit(f"{path}: what is {kind!r}?")
    return images, objects


def point(text):
    return tuple(float(number) for number in text.split(","))


def load(shards, wanted):
    """JPEG bytes, what the shard says of the sample, and its size in pixels."""
    contents = {}
    for shard in shards:
        with tarfile.open(shard) as archive:
            for member in archive:
                if member.name.split(".")[0] in wanted:
                    contents[member.name] = archive.extractfile(member).read()
    samples = {}
    for name in wanted:
        jpeg = contents[f"{name}.jpg"]
        samples[name] = (jpeg, json.loads(contents[f"{name}.json"]), size(jpeg))
    return samples


def size(jpeg):
    """Width, height and channels from the frame header."""
    at = 2
    while jpeg[at + 1] not in (0xC0, 0xC1, 0xC2):
        at += 2 + struct.unpack(">H", jpeg[at + 2 : at + 4])[0]
    height, width, channels = struct.unpack(">HHB", jpeg[at + 5 : at + 10])
    return width, height, channels


def on_sample(thing, whole, sample):
    """The object as a crop shows it, or None where too little of it is left."""
    (left, top, width, height), (columns, rows, _) = sample[1]["box"], sample[2]
    _, _, whole_width, whole_height = whole[1]["box"]

    def move(x, y):
        x, y = x * whole_width / whole[2][0], y * whole_height / whole[2][1]
        return (x - left) * columns / width, (y - top) * rows / height

    x0, y0 = move(*thing["box"][:2])
    x1, y1 = move(*thing["box"][2:])
    inside = max(0.0, x0), max(0.0, y0), min(float(columns), x1), min(float(rows), y1)
    seen = max(0.0, inside[2] - inside[0]) * max(0.0, inside[3] - inside[1]) / ((x1 - x0) * (y1 - y0))
    if seen < 0.05:
        return None
    box = [round(edge) for edge in inside]
    return {
        "class": thing["class"],
        "difficult": thing["difficult"] or seen < 0.25,
        "truncated": box[0] == 0 or box[1] == 0 or box[2] == columns or box[3] == rows,
        "box": box,
        "mask": [[move(*corner) for corner in polygon] for polygon in thing["mask"]],
    }


def write(folder, names, images, found, samples):
    for part in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Main", "ImageSets/Segmentation"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for name in names:
        jpeg, _, (columns, rows, channels) = samples[name]
        segmented = images[name][1] != "-"
        (folder / "JPEGImages" / f"{name}.jpg").write_bytes(jpeg)
        text = annotation(folder.name, name, (columns, rows, channels), found[name], segmented)
        (folder / "Annotations" / f"{name}.xml").write_text(text, encoding="utf-8")
        if segmented:
            png = palette_png(mask(columns, rows, found[name]), columns, rows)
            (folder / "SegmentationClass" / f"{name}.png").write_bytes(png)
    lists = [("Segmentation", 1, "train val trainval"), ("Main", 0, "train val trainval test")]
    if folder.name == "VOC2012":
        lists[1] = ("Main", 1, "train val trainval")
    for task, which, splits in lists:
        for split in splits.split():
            chosen = [name for name in names if images[name][which] in ("train", "val") and images[name][which] in split]
            if split == "test":
                chosen = [name for name in names if images[name][which] == "test"]
            (folder / "ImageSets" / task / f"{split}.txt").write_text("".join(f"{name}\n" for name in chosen))


def annotation(year, name, image, things, segmented):
    columns, rows, channels = image
    objects = "".join(
        f"""\t<object>
\t\t<name>{escape(thing["class"])}</name>
\t\t<pose>Unspecified</pose>
\t\t<truncated>{thing["truncated"]:d}</truncated>
\t\t<difficult>{thing["difficult"]:d}</difficult>
\t\t<bndbox>
\t\t\t<xmin>{thing["box"][0] + 1}</xmin>
\t\t\t<ymin>{thing["box"][1] + 1}</ymin>
\t\t\t<xmax>{thing["box"][2]}</xmax>
\t\t\t<ymax>{thing["box"][3]}</ymax>
\t\t</bndbox>
\t</object>
"""
        for thing in things
    )
    return f"""<annotation>
\t<folder>{year}</folder>
\t<filename>{name}.jpg</filename>
\t<size>
\t\t<width>{columns}</width>
\t\t<height>{rows}</height>
\t\t<depth>{channels}</depth>
\t</size>
\t<segmented>{segmented:d}</segmented>
{objects}</annotation>
"""


def mask(columns, rows, things):
    """Class of each pixel, row by row; where two objects meet, or one meets the background, is void."""
    owners = [0] * (columns * rows)
    for number, thing in enumerate(things, 1):
        x0, y0, x1, y1 = thing["box"]
        whole_box = [[(x0, y0), (x1, y0), (x1, y1), (x0, y1)]]
        for polygon in thing["mask"] or whole_box:
            fill(owners, columns, rows, polygon, number)
    values = [0] * len(owners)
    for y in range(rows):
        for x in range(columns):
            owner = owners[y * columns + x]
            around = {
                owners[v * columns + u]
                for v in range(max(0, y - 1), min(rows, y + 2))
                for u in range(max(0, x - 1), min(columns, x + 2))
            }
            if len(around) > 1 or (owner and things[owner - 1]["difficult"]):
                values[y * columns + x] = VOID
            elif owner:
                values[y * columns + x] = CLASSES.index(things[owner - 1]["class"]) + 1
    return values


def fill(owners, columns, rows, polygon, number):
    """Marks the pixels whose centres are in the polygon (even and odd crossings)."""
    for y in range(rows):
        crossings = []
        for (x0, y0), (x1, y1) in zip(polygon, polygon[1:] + polygon[:1]):
            if (y0 <= y + 0.5) != (y1 <= y + 0.5):
                crossings.append(x0 + (y + 0.5 - y0) * (x1 - x0) / (y1 - y0))
        crossings.sort()
        for start, end in zip(crossings[::2], crossings[1::2]):
            for x in range(columns):
                if start <= x + 0.5 < end:
                    owners[y * columns + x] = number


def colour(value):
    """The colour map of VOC: bits 0, 3, 6 of the number are the high bits of red, 1, 4, 7 of green, 2, 5 of blue."""
    channels = [0, 0, 0]
    for bit in range(8):
        channels[bit % 3] |= (value >> bit & 1) << (7 - bit // 3)
    return bytes(channels)


def palette_png(values, columns, rows):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    lines = b"".join(b"\0" + bytes(values[y * columns : (y + 1) * columns]) for y in range(rows))
    header = struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)
    palette = b"".join(colour(value) for value in range(256))
    parts = [(b"IHDR", header), (b"PLTE", palette), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, content) for kind, content in parts)


if __name__ == "__main__":
    main()
