"""The allow-list of photographs and how to open them where the packages keep them.

In: photos.tsv beside this file, and the folder with one unpacked package a subfolder. Out: Pillow images, RGB or gray.
A file that a package lacks raises OSError or KeyError: then it is another version than packages.txt names.
"""

import csv
import io
from pathlib import Path

from PIL import Image

import rcc


def allow_list():
    """The rows of photos.tsv: id, package, path, licence, author, source, note."""
    path = Path(__file__).parent / "photos.tsv"
    with open(path, newline="", encoding="utf-8") as rows:
        return list(csv.DictReader(rows, delimiter="\t", quoting=csv.QUOTE_NONE))


class Originals:
    """Finds photographs in unpacked packages; `a.rcc//b.webp` is a file inside a Qt resource."""

    def __init__(self, packages):
        self.packages = packages
        self.resources = {}

    def load(self, photo):
        image = self._open(photo)
        return image.convert("L" if image.mode in ("L", "LA") else "RGB")

    def size(self, photo):
        return self._open(photo).size

    def _open(self, photo):
        path, _, inside = photo["path"].partition("//")
        file = self.packages / photo["package"] / path
        if not inside:
            return Image.open(file)
        if file not in self.resources:
            self.resources[file] = dict(rcc.files(file.read_bytes()))
        return Image.open(io.BytesIO(self.resources[file][inside]))
