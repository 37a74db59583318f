"""What `shoal eval retrieval` says, said again by numpy in double precision, straight from the published protocol.

    retrieval.py regions DIR     the regions in DIR/regions.safetensors, a tensor `LEVELS:HEIGHT:WIDTH` of rows (top, left, side) for
                                 each map, are those of the formula
    retrieval.py evaluate DIR    from the maps in DIR/maps.safetensors (`image:NAME`, `query:NAME` and `whiten:NAME`, each [C, H, W])
                                 and the lists in DIR/truth: descriptors, rankings and average precisions, compared with
                                 DIR/rankings.tsv and DIR/found.json of the command with --rankings and --json

tests/retrieval.rs calls it. It needs numpy and safetensors (ops/peers.sh). Exit status: 0 as it should be.
"""

import csv
import json
import sys
from pathlib import Path

import numpy
from safetensors.numpy import load_file

TOLERANCE = 1e-4


def regions(height, width, levels):
    """(row, column, side) of every square, as in the published MATLAB program, in numpy's double precision."""
    w = min(width, height)
    steps = numpy.arange(2, 8)
    b = (max(height, width) - w) / (steps - 1)
    overlaps = (w**2 - w * b) / w**2
    best = int(numpy.argmin(numpy.abs(overlaps - 0.4))) + 1
    wide, high = (best if width > height else 0), (best if height > width else 0)
    found = []
    for level in range(1, levels + 1):
        wl = max(int(numpy.floor(2 * w / (level + 1))), 1)
        wl2 = numpy.floor(wl / 2 - 1)

        def corners(size, extra):
            b = (size - wl) / (level + extra - 1) if level + extra > 1 else 0
            centres = numpy.floor(wl2 + numpy.arange(level + extra) * b)
            return [min(max(int(centre - wl2), 0), size - wl) for centre in centres]

        for row in corners(height, high):
            found += [(row, column, wl) for column in corners(width, wide)]
    return found


def unit(rows):
    return rows / numpy.maximum(numpy.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


def region_vectors(image, levels):
    """Unit rows: the largest activation of each channel in each region."""
    image = image.astype(numpy.float64)
    squares = regions(image.shape[1], image.shape[2], levels)
    return unit(numpy.stack([image[:, row : row + wl, column : column + wl].max(axis=(1, 2)) for row, column, wl in squares]))


def learn(vectors, dims):
    """Mean and projection: eigenvectors of the scatter matrix over the roots of their eigenvalues, the largest first."""
    mean = vectors.mean(axis=0)
    scatter = (vectors - mean).T @ (vectors - mean)
    values, directions = numpy.linalg.eigh(scatter)
    values, directions = values[::-1], directions[:, ::-1]
    return mean, (directions / numpy.sqrt(numpy.maximum(values, 1e-5 * values[0])))[:, :dims]


def describe(image, levels, whitening):
    vectors = region_vectors(image, levels)
    if whitening is not None:
        mean, projection = whitening
        vectors = unit((vectors - mean) @ projection)
    return unit(vectors.sum(axis=0))


def average_precision(ranked, positives, junk):
    """`compute_ap` of Oxford buildings, line by line."""
    old_recall, old_precision, area = 0.0, 1.0, 0.0
    hits, seen = 0, 0
    for name in ranked:
        if name in junk:
            continue
        hits += name in positives
        recall, precision = hits / len(positives), hits / (seen + 1.0)
        area += (recall - old_recall) * (old_precision + precision) / 2.0
        old_recall, old_precision = recall, precision
        seen += 1
    return area


def check_regions(folder):
    given = load_file(folder / "regions.safetensors")
    for name, rows in given.items():
        levels, height, width = map(int, name.split(":"))
        assert rows.tolist() == [list(row) for row in regions(height, width, levels)], name
    print(len(given))


def evaluate(folder):
    maps = load_file(folder / "maps.safetensors")
    found = json.loads((folder / "found.json").read_text())
    levels = found["levels"]

    def of(kind):
        return {name.split(":", 1)[1]: maps[name] for name in sorted(maps) if name.startswith(kind + ":")}

    others = of("whiten")
    whitening = None
    if others:
        vectors = numpy.concatenate([region_vectors(image, levels) for image in others.values()])
        assert found["whitening"] == {"images": len(others), "regions": len(vectors)}, found["whitening"]
        whitening = learn(vectors, found["dimensions"])
    images = of("image")
    names = sorted(images)
    database = numpy.stack([describe(images[name], levels, whitening) for name in names])
    assert database.shape[1] == found["dimensions"]

    with open(folder / "rankings.tsv", encoding="utf-8") as lines:
        places = list(csv.DictReader(lines, delimiter="\t"))
    precisions = {}
    for query, image in of("query").items():
        descriptor = describe(image, levels, whitening)
        similarities = dict(zip(names, database @ descriptor))
        theirs = [place for place in places if place["query"] == query]
        assert sorted(place["image"] for place in theirs) == names, query
        assert [int(place["rank"]) for place in theirs] == list(range(1, len(names) + 1))
        for place in theirs:
            difference = abs(float(place["similarity"]) - similarities[place["image"]])
            assert difference <= TOLERANCE, f"{query}, {place['image']}: similarities differ by {difference}"
        lists = {kind: set((folder / "truth" / f"{query}_{kind}.txt").read_text().split()) for kind in ("good", "ok", "junk")}
        ranked = sorted(names, key=lambda name: -similarities[name])
        precisions[query] = average_precision(ranked, lists["good"] | lists["ok"], lists["junk"])
    assert sorted(precisions) == [query["query"] for query in found["queries"]]
    for query in found["queries"]:
        expected = precisions[query["query"]]
        assert abs(query["average_precision"] - expected) < 1e-12, f"{query} {expected}"
    mean = sum(precisions.values()) / len(precisions)
    assert abs(found["mean_average_precision"] - mean) < 1e-12
    spread = max(precisions.values()) - min(precisions.values())
    assert spread > 0.01, "queries that all come out alike prove little"
    print(mean)


if __name__ == "__main__":
    {"regions": check_regions, "evaluate": evaluate}[sys.argv[1]](Path(sys.argv[2]))
