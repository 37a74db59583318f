"""Compares what shoal and Pillow say of every file of a corpus, and writes the table.

Usage: compare.py FOLDER SHOAL RESULTS.md      FOLDER is what fetch.sh made; SHOAL is the program

The files become one tar, a sample each, which `shoal shards check` reads under a limit on its address space (RLIMIT_AS) and
a limit of 20 megapixels. Pillow opens the same bytes and decodes the first frame, with its own limit at the same number of pixels, each file
in a process of its own where it ends the process. What begins like no picture for either is left out.
"""

import collections
import io
import json
import os
import resource
import signal
import subprocess
import sys
import tarfile
import warnings
from pathlib import Path

from PIL import Image

MEGAPIXELS = 20
# libtorch alone takes some GB of addresses; what a picture at the limit needs is far below the rest
ADDRESS_SPACE = 6 << 30


def ask_shoal(folder, shoal, paths):
    """What shoal says of each: "read", or the reason and the words of the ledger."""
    tar_path, ledger = folder / "corpus.tar", folder / "ledger.jsonl"
    ledger.unlink(missing_ok=True)
    with tarfile.open(tar_path, "w") as tar:
        for number, path in enumerate(paths):
            member = tarfile.TarInfo(f"{number:05d}.img")
            data = path.read_bytes()
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    command = [shoal, "shards", "check", str(tar_path), "--json", "--lanes", "1", "--ledger", str(ledger)]
    limit = lambda: resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    done = subprocess.run(
        command + ["--max-megapixels", str(MEGAPIXELS)], preexec_fn=limit, capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 3):
        sys.exit(f"shoal ended with {done.returncode}:\n{done.stderr[-3000:]}")
    report = json.loads(done.stdout)[0]
    verdicts = {number: ("read", "") for number in range(len(paths))}
    for line in ledger.read_text().splitlines():
        loss = json.loads(line)
        if loss.get("key"):
            verdicts[int(loss["key"])] = (loss["reason"], loss["detail"])
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
    return verdicts, report, peak


def ask_pillow(path):
    """Pillow's verdict: "read", or its error; asked in a child, which may end as it likes."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        signal.alarm(60)
        os.write(writer, pillow_verdict(path).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        verdict = pipe.read()
    _, status = os.waitpid(child, 0)
    return verdict or f"ended with status {status}"


def pillow_verdict(path):
    warnings.simplefilter("ignore")
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    Image.MAX_IMAGE_PIXELS = MEGAPIXELS * 1_000_000
    try:
        with Image.open(path) as picture:
            picture.convert("RGB")
        return "read"
    except Exception as error:  # whatever it is, it is the verdict
        return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def kind_of(path):
    head = path.read_bytes()[:16]
    magics = {
        b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"GIF8": "GIF", b"BM": "BMP", b"II*\0": "TIFF",
        b"MM\0*": "TIFF",
    }
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    return next((name for magic, name in magics.items() if head.startswith(magic)), "other")


def cause(kind, ours, theirs):
    """Why the two differ, in words; every difference must have its cause."""
    said = ours[1]
    rules = [
        ("panicked", "the `tiff` crate panics on planar tiles; the panic is caught and costs the image"),
        ("unsupported_format", f"a variant of {kind} that the `{kind.lower()}` decoder of the `image` crate does not know"),
        ("unknown extension", "the `gif` crate is strict about extension blocks"),
        ("no color table", "Pillow makes up a gray palette"),
        ("extraneous bytes", "libjpeg warns of the header, and such a file is refused; Pillow reads on"),
        ("RLE", "corrupt runs: Pillow keeps the rows before"),
        ("plane", "a count of planes that is wrong, which Pillow ignores"),
        ("top-down", "compressed and top-down at once, which the format forbids"),
        ("Tiff", "a header that contradicts itself, which libtiff mends"),
        ("fill whole buffer", "fax data that end early: libtiff keeps the rows before"),
    ]
    for words, why in rules:
        if words in f"{ours[0]}: {said}":
            return why
    rules = [
        ("truncated", "cut short: what came is kept on purpose, and counted as `truncated_pixels`"),
        ("APNG", "the default image is whole; frames of animations are not looked at"),
        ("MAX_TEXT_CHUNK", "the text beside the pixels is not unpacked"),
        ("Unsupported BMP", "a variant that Pillow does not know"),
        ("cannot identify", "a field that the decoder does not need is wrong"),
    ]
    return next((why for words, why in rules if words in theirs), "?")


def main():
    folder, shoal, results = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    paths = sorted(path for name in ("pillow", "gdk-pixbuf") for path in (folder / name).rglob("*") if path.is_file())
    ours, report, peak = ask_shoal(folder, shoal, paths)
    table = collections.defaultdict(collections.Counter)
    differ = []
    for number, path in enumerate(paths):
        kind = kind_of(path)
        theirs = ask_pillow(path)
        reason, detail = ours[number]
        we, they = reason == "read", theirs == "read"
        table[kind][we, they] += 1
        if we != they and kind != "other":
            name = path.relative_to(folder)
            theirs = theirs.replace(str(folder) + "/", "")
            differ.append((kind, str(name), "read" if we else f"{reason}: {detail}", theirs, cause(kind, ours[number], theirs)))
    lines = [
        "# What shoal and Pillow say of others' test images",
        "",
        "Written by `ops/corpus/compare.py` over what `ops/corpus/fetch.sh` fetches: the test images of Pillow 12.3.0 and of Debian's",
        "gdk-pixbuf-tests. `other` are formats that shoal does not read on purpose (TGA, DDS, FLI, PSD, AVIF, JPEG 2000, icons, ...) and files",
        "that are no images; all of them are lost with a reason.",
        "",
        f"{len(paths)} files; shoal's process ended in order, verdict on the tar: {report['verdict']}; its largest resident",
        f"size {peak} MiB under a limit of {ADDRESS_SPACE >> 30} GiB on addresses; {MEGAPIXELS} megapixels allowed to both.",
        "",
        "| begins like | both read | neither | only shoal | only Pillow |",
        "|---|---|---|---|---|",
    ]
    for kind, counts in sorted(table.items()):
        order = [(True, True), (False, False), (True, False), (False, True)]
        lines.append(f"| {kind} | " + " | ".join(str(counts[pair]) for pair in order) + " |")
    lines += ["", "| file | shoal | Pillow | cause |", "|---|---|---|---|"]
    for _, name, we, they, why in sorted(differ):
        lines.append(f"| {name} | {we} | {they} | {why} |".replace("\n", " "))
    results.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
