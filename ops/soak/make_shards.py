"""Makes the shards of the soak from the photographs of the repository.

Usage: make_shards.py FOLDER PHOTOS.tar...

FOLDER gets the tars themselves; `large.tar`, all of them in one, so that it takes several ranges; `packed.tar.gz`, the same
compressed; and `short.tar`, the first of them cut short inside an image for good.
"""

import gzip
import shutil
import sys
import tarfile
from pathlib import Path


def main():
    folder, *photos = sys.argv[1:]
    folder = Path(folder)
    for path in photos:
        shutil.copy(path, folder)
    with tarfile.open(folder / "large.tar", "w", format=tarfile.PAX_FORMAT) as large:
        for path in photos:
            with tarfile.open(path) as tar:
                for member in tar:
                    member.name = f"{Path(path).stem}/{member.name}"
                    large.addfile(member, tar.extractfile(member) if member.isfile() else None)
    with open(folder / "large.tar", "rb") as tar, gzip.open(folder / "packed.tar.gz", "wb", 1) as packed:
        shutil.copyfileobj(tar, packed)
    whole = Path(photos[0]).read_bytes()
    (folder / "short.tar").write_bytes(whole[: len(whole) * 6 // 10])


if __name__ == "__main__":
    main()
