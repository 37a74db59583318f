"""What `shoal eval detection` computes, said again by torchvision and scipy.

    detection.py pool IO.safetensors      regions pooled from a map, and the gradient of their weighted sum, as roi_pool gives them
    detection.py nms IO.safetensors       boxes that greedy suppression leaves, in order
    detection.py mat OUT                  writes OUT/*.mat as selective search comes, and OUT/boxes.json with what they hold

tests/detection.rs calls it. It needs torch, torchvision, safetensors, numpy and scipy (ops/peers.sh). Exit status: 0 as it should be.
"""

import json
import sys
from pathlib import Path

import numpy


def pool(path):
    import torch
    from safetensors.torch import load_file
    from torchvision.ops import roi_pool

    io = load_file(path)
    for name in ("alexnet", "vgg16"):
        side = io[f"{name}.pooled"].shape[-1]
        maps = io[f"{name}.map"][None].requires_grad_()
        regions = torch.cat([torch.zeros(len(io["regions"]), 1), io["regions"]], dim=1)
        pooled = roi_pool(maps, regions, side, 1 / 16)
        (pooled * io[f"{name}.weights"]).sum().backward()
        assert (pooled != 0).float().mean() > 0.2, "zeros prove nothing"
        torch.testing.assert_close(io[f"{name}.pooled"], pooled.detach(), rtol=0, atol=0)
        torch.testing.assert_close(io[f"{name}.gradient"], maps.grad[0], rtol=1e-5, atol=1e-5)


def nms(path):
    from safetensors.torch import load_file
    from torchvision.ops import nms

    io = load_file(path)
    kept = nms(io["boxes"], io["scores"], 0.3)
    assert 1 < len(kept) < len(io["boxes"]) / 2
    assert kept.tolist() == io["kept"].tolist(), "the same boxes in the same order"


def mat(folder):
    from scipy.io import savemat

    random = numpy.random.default_rng(3)
    names = ["000005", "000012", "2008_000002"]
    corners = [random.integers(1, 300, (count, 2)) for count in (2000, 1, 0)]
    whole = [numpy.hstack([first, first + random.integers(0, 200, first.shape)]) for first in corners]

    def cells(values, shape):
        found = numpy.empty(shape, dtype=object)
        found.flat = values
        return found

    for name, kind, compressed in (
        ("packed", "float64", True),
        ("plain", "float64", False),
        ("single", "float32", True),
        ("words", "uint16", True),
        ("integers", "int64", False),
    ):
        boxes = cells([rows.astype(kind) for rows in whole], (1, len(names)))
        images = cells(names, (len(names), 1))
        aside = {"boxes": boxes, "images": images, "note": {"a": 1.0}, "flag": numpy.array([True])}
        savemat(folder / f"{name}.mat", aside, do_compression=compressed)
    savemat(folder / "lacking.mat", {"boxes": cells([whole[0].astype(float)], (1, 1))})
    # From (y1, x1, y2, x2), both ends included, to (left, top, right, bottom).
    plain = {name: [[x1 - 1, y1 - 1, x2, y2] for y1, x1, y2, x2 in rows.tolist()] for name, rows in zip(names, whole)}
    (folder / "boxes.json").write_text(json.dumps(plain))


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("pool", "nms", "mat"):
        sys.exit(__doc__)
    globals()[sys.argv[1]](Path(sys.argv[2]))
