"""Times `shoal eval probes` and the plain way in PyTorch on the same photographs; ops/bench/probing.sh calls it.

A time is that of an epoch: what a process with --epochs epochs takes longer than one with a single epoch, divided by the epochs between, so
that starting, reading labels and warming up do not count. Rounds alternate; medians are printed as Markdown.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import time
from pathlib import Path

LAYERS = ["conv1", "conv2", "conv3", "conv4", "conv5"]
# Place of the ReLU of each convolution in `features`, and kernel, stride and padding of its average (DeepCluster, Table 1).
TAPS = {2: (6, 6, 3), 6: (4, 4, 0), 10: (3, 3, 1), 13: (3, 3, 1), 16: (2, 2, 0)}
BATCH = 256
CLASSES = 16


def label(folder, count):
    """Writes the first `count` photographs as files and as one shard, each with a class: which of 16 parts of the list its photograph is from."""
    shard, files = folder / f"photos-{count}.tar", folder / f"files-{count}"
    if shard.is_file():
        return shard, files
    files.mkdir(exist_ok=True)
    samples = {}
    for path in sorted(Path("shards").glob("photos-*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                key, _, extension = member.name.partition(".")
                samples.setdefault(key, {})[extension] = archive.extractfile(member).read()
    samples = dict(list(samples.items())[:count])
    parents = sorted({json.loads(sample["json"])["parent"] for sample in samples.values()})
    aside = folder / "photos.partial"
    with tarfile.open(aside, "w") as archive:
        for key, sample in samples.items():
            of = parents.index(json.loads(sample["json"])["parent"]) * CLASSES // len(parents)
            (files / f"{key}-{of}.jpg").write_bytes(sample["jpg"])
            for name, data in ((f"{key}.jpg", sample["jpg"]), (f"{key}.cls", str(of).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    aside.rename(shard)
    return shard, files


def plain(files, layers, epochs, workers):
    """The plain way: every layer in `layers` in one pass."""
    import torch
    from PIL import Image
    from torch import nn
    from torchvision import transforms

    class Photographs(torch.utils.data.Dataset):
        def __init__(self, transform):
            self.paths = sorted(files.iterdir())
            self.transform = transform

        def __len__(self):
            return len(self.paths)

        def __getitem__(self, at):
            path = self.paths[at]
            return self.transform(Image.open(path).convert("RGB")), int(path.stem.rsplit("-", 1)[1])

    def block(inputs, outputs, kernel, **where):
        return [nn.Conv2d(inputs, outputs, kernel, **where), nn.BatchNorm2d(outputs), nn.ReLU()]

    sobel = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Conv2d(1, 2, 3, padding=1))
    pool = lambda: nn.MaxPool2d(3, 2)  # noqa: E731
    features = nn.Sequential(
        *block(2, 96, 11, stride=4, padding=2), pool(),
        *block(96, 256, 5, padding=2), pool(),
        *block(256, 384, 3, padding=1), *block(384, 384, 3, padding=1), *block(384, 256, 3, padding=1),
    )  # fmt: skip
    sobel.eval(), features.eval()
    taps = {place: nn.AvgPool2d(*window) for place, window in TAPS.items()}
    wanted = [place for place, name in zip(TAPS, LAYERS) if name in layers]

    def rows(images):
        found, x = [], sobel(images)
        for place, module in enumerate(features):
            x = module(x)
            if place in wanted:
                found.append(taps[place](x).flatten(1))
            if place == wanted[-1]:
                return found

    scale = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    start = [transforms.Resize(256), transforms.CenterCrop(256)]
    fit = transforms.Compose([*start, transforms.RandomCrop(224), transforms.RandomHorizontalFlip(), transforms.ToTensor(), scale])
    try_ = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), scale])
    loader = lambda transform, shuffle: torch.utils.data.DataLoader(  # noqa: E731
        Photographs(transform), BATCH, shuffle=shuffle, num_workers=workers
    )
    with torch.no_grad():
        widths = [row.shape[1] for row in rows(torch.zeros(1, 3, 224, 224))]
    probes = [nn.Linear(width, CLASSES) for width in widths]
    optimizers = [torch.optim.SGD(probe.parameters(), 0.01, momentum=0.9, weight_decay=1e-4) for probe in probes]
    for _ in range(epochs):
        for images, classes in loader(fit, True):
            with torch.no_grad():
                found = rows(images)
            for row, probe, optimizer in zip(found, probes, optimizers):
                optimizer.zero_grad()
                nn.functional.cross_entropy(probe(row), classes).backward()
                optimizer.step()
        right = [0] * len(probes)
        with torch.no_grad():
            for images, classes in loader(try_, False):
                for at, (row, probe) in enumerate(zip(rows(images), probes)):
                    right[at] += (probe(row).argmax(1) == classes).sum().item()


def timed(command, environment):
    started = time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}:\n{done.stderr}")
    return time.monotonic() - started


def epoch(command, environment, epochs):
    """Seconds of one epoch."""
    times = [timed([*command, "--epochs", str(count)], environment) for count in (1, epochs)]
    return (times[1] - times[0]) / (epochs - 1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("shoal", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--images", type=int, default=450, help="photographs, of 1,800")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--plain", help="layers: only this, the plain way, in this process")
    options = parser.parse_args()
    shard, files = label(options.folder, options.images)
    if options.plain:
        plain(files, options.plain.split(","), options.epochs, options.workers)
        return

    clean = {key: value for key, value in os.environ.items() if key != "LD_LIBRARY_PATH"}
    ours = {**clean, "LD_LIBRARY_PATH": str(Path(".libtorch/torch/lib").resolve())}
    shoal = [options.shoal, "eval", "probes", "--snapshot", "random:alexnet", "--train", shard, "--test", shard, "--json"]
    peer = [sys.executable, __file__, options.shoal, options.folder, "--workers", str(options.workers)]
    peer += ["--images", str(options.images), "--plain"]
    found = {"shoal, all layers": [], "PyTorch, all layers hooked": [], "PyTorch, one layer after the other": []}
    for _ in range(options.rounds):
        found["shoal, all layers"].append(epoch(shoal, ours, options.epochs))
        found["PyTorch, all layers hooked"].append(epoch([*peer, ",".join(LAYERS)], clean, options.epochs))
        alone = [epoch([*peer, layer], clean, options.epochs) for layer in LAYERS]
        found["PyTorch, one layer after the other"].append(sum(alone))
    first = statistics.median(found["shoal, all layers"])
    print(f"{os.cpu_count()} cores, {options.rounds} rounds, batches of {BATCH}, {options.images} photographs fitted and tested\n")
    print("| way | seconds an epoch, median | of shoal's |\n|---|---|---|")
    for name, times in found.items():
        median = statistics.median(times)
        print(f"| {name} | {median:.1f} | {median / first:.2f} |")


if __name__ == "__main__":
    main()
