#!/usr/bin/env python3
"""Makes two small sets of photographs in the layout of Oxford 5k and Paris 6k, out of shards/photos-*.tar.

    miniature_oxford.py OUT

Out: OUT/oxford/images (one folder) and OUT/paris/images (one folder a landmark), each with OUT/.../truth: the lists NAME_query.txt,
NAME_good.txt, NAME_ok.txt and NAME_junk.txt of eight queries. A landmark is a photograph of which the shards hold many crops, and the
object of a query is a box on one of them. Good are crops that show at least three quarters of the object, ok those that show more than a
quarter, junk those that show less; as in Oxford, a crop that shows none of it is in no list, and the photograph that is searched with is
good. Photographs of other things lie among them. The two sets share no photograph. Nothing is random: the same shards give the
same bytes. Python 3.10 or newer; no packages.
"""

import argparse
import json
import tarfile
from pathlib import Path

SHARDS = Path(__file__).resolve().parents[2] / "shards"
LANDMARKS = {
    "oxford": ["monuments-brandenburg-gate", "monuments-eiffel-tower", "monuments-mont-st-michel", "monuments-worms-cathedral"],
    "paris": ["monuments-reims-cathedral", "monuments-golden-temple", "monuments-chateaude-chambord", "monuments-castle-clinton"],
}
# Oxford writes this before the name of the photograph in a query.
PREFIX = {"oxford": "oxc1_", "paris": ""}
QUERIES_OF_A_LANDMARK = 2
OTHERS = 24
GOOD, OK = 0.75, 0.25
# The object is so much of the sides of the crop that is searched with.
OBJECT = 0.6


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("out", type=Path, help="the folder to make")
    out = arguments.parse_args().out
    crops = read_crops()
    of_landmark = {}
    for crop in crops:
        of_landmark.setdefault(crop["parent"].removeprefix("gcompris-"), []).append(crop)
    taken = {name for names in LANDMARKS.values() for name in names}
    others = [of_landmark[name][0] for name in sorted(of_landmark) if name not in taken]
    step = len(others) // (OTHERS * len(LANDMARKS))
    for place, (town, landmarks) in enumerate(LANDMARKS.items()):
        images = {}
        truth = out / town / "truth"
        truth.mkdir(parents=True, exist_ok=True)
        for landmark in landmarks:
            label = landmark.split("-", 1)[1].replace("-", "_")
            named = {name_of(town, label, crop): crop for crop in of_landmark[landmark]}
            images.update({folder_of(town, label) / f"{name}.jpg": crop for name, crop in named.items()})
            write_queries(truth, label, named, PREFIX[town])
        for crop in others[place * step :: step * len(LANDMARKS)][:OTHERS]:
            images[folder_of(town, "general") / f"{name_of(town, 'general', crop)}.jpg"] = crop
        for path, crop in images.items():
            path = out / town / "images" / path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(crop["jpeg"])
        queries = len(list(truth.glob("*_query.txt")))
        print(f"{out / town}: {len(images)} photographs, {queries} queries")


def read_crops():
    """Every sample of the shards in their order: its number, its JPEG, its size, and where it was cut from its parent."""
    crops = []
    for shard in sorted(SHARDS.glob("photos-*.tar")):
        with tarfile.open(shard) as archive:
            members = {member.name: archive.extractfile(member).read() for member in archive}
        for name in sorted(name for name in members if name.endswith(".jpg")):
            number = name.removesuffix(".jpg")
            facts = json.loads(members[number + ".json"])
            crops.append({"number": number, "jpeg": members[name], "parent": facts["parent"], "box": facts["box"]})
    return crops


def name_of(town, label, crop):
    return f"{'paris_' if town == 'paris' else ''}{label}_{crop['number']}"


def folder_of(town, label):
    return Path(label if town == "paris" else "")


def write_queries(truth, label, named, prefix):
    """The lists of the queries of one landmark: those crops that have the most to find, with something in every list."""
    candidates = []
    for name, crop in named.items():
        lists = relevance(object_of(crop), named)
        balance = min(len(lists["ok"]), 3) + min(len(lists["junk"]), 3)
        candidates.append((-balance, -len(lists["good"]), name, lists))
    for number, (_, _, name, lists) in enumerate(sorted(candidates, key=lambda found: found[:3])[:QUERIES_OF_A_LANDMARK]):
        query = f"{label}_{number + 1}"
        edges = " ".join(f"{edge:.1f}" for edge in on_crop(object_of(named[name]), named[name]))
        (truth / f"{query}_query.txt").write_text(f"{prefix}{name} {edges}\n")
        for kind, names in lists.items():
            (truth / f"{query}_{kind}.txt").write_text("".join(f"{name}\n" for name in sorted(names)))


def object_of(crop):
    """Left, top, right and bottom, in pixels of the parent, of the middle of a crop."""
    left, top, width, height = crop["box"]
    margin = (1 - OBJECT) / 2
    return left + margin * width, top + margin * height, left + (1 - margin) * width, top + (1 - margin) * height


def relevance(thing, named):
    lists = {"good": [], "ok": [], "junk": []}
    for name, crop in named.items():
        shown = share_shown(thing, crop["box"])
        if shown > 0:
            lists["good" if shown >= GOOD else "ok" if shown > OK else "junk"].append(name)
    return lists


def share_shown(thing, box):
    left, top, right, bottom = thing
    width = min(right, box[0] + box[2]) - max(left, box[0])
    height = min(bottom, box[1] + box[3]) - max(top, box[1])
    return max(width, 0) * max(height, 0) / ((right - left) * (bottom - top))


def on_crop(thing, crop):
    """Edges of the object in pixels of the crop's JPEG."""
    left, top, width, height = crop["box"]
    columns, rows = size_of(crop["jpeg"])
    across, down = columns / width, rows / height
    return (thing[0] - left) * across, (thing[1] - top) * down, (thing[2] - left) * across, (thing[3] - top) * down


def size_of(jpeg):
    """Width and height in the frame header of a JPEG."""
    at = 2
    while jpeg[at] == 0xFF:
        marker, length = jpeg[at + 1], int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(jpeg[at + 7 : at + 9], "big"), int.from_bytes(jpeg[at + 5 : at + 7], "big")
        at += 2 + length
    raise ValueError("no frame in a JPEG")


if __name__ == "__main__":
    main()
