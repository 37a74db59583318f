#!/usr/bin/env python3
"""Converts checkpoints of PyTorch into the safetensors that every command of shoal takes.

    .peers/bin/python ops/import.py CHECKPOINT OUT.safetensors

It reads .pth, .pth.tar, .pt and .safetensors: published DeepCluster and DeeperCluster checkpoints, state dicts of
torchvision's and timm's resnet18, resnet50 and vgg16_bn, and what `shoal export` writes as pytorch, torchvision or timm.
It says what it found (architecture, input, size, k, epoch), what it leaves aside (heads, counters of batches), and refuses
what does not fit, by name.

Pickles can run any code. PyTorch reads them here with weights_only, which runs none; files that need more are refused until
--trust says that their origin is known.

Needs torch and safetensors (ops/peers.sh makes .peers). Exit codes: 0 done, 2 command line, 3 the file.
"""

import argparse
import json
import os
import sys
import zipfile
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

# (maps, kernel, stride, padding, pooled afterwards) of each convolution; (kernel, stride, padding) of the pools
CONVS = {
    "alexnet": [(96, 11, 4, 2, 1), (256, 5, 1, 2, 1), (384, 3, 1, 1, 0), (384, 3, 1, 1, 0), (256, 3, 1, 1, 1)],
    "vgg16": [
        (maps, 3, 1, 1, position == times)
        for maps, times in [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]
        for position in range(1, times + 1)
    ],
    "small": [(32, 5, 2, 2, 0), (64, 3, 1, 1, 1), (128, 3, 1, 1, 1), (256, 3, 1, 1, 0)],
}
POOLS = {"alexnet": (3, 2, 0), "vgg16": (2, 2, 0), "small": (3, 2, 1)}
# N of `classifier.N`, and outputs
LINEARS = {"alexnet": [(1, 4096), (4, 4096)], "vgg16": [(0, 4096), (3, 4096)], "small": [(1, 256)]}
RESNETS = {"resnet18": ([2, 2, 2, 2], 1), "resnet50": ([3, 4, 6, 3], 4)}
# by the shape of the first convolution but for its inputs
FIRST = {(96, 11): "alexnet", (64, 3): "vgg16", (32, 5): "small"}
# the last map of `small` is averaged to 2 x 2
SMALL_SIDE = 2
LARGEST_SIZE = 2048

HEADS = ("top_layer.", "pred_layer.", "fc.", "head.fc.", "classifier.6.")
TIMM_VGG = {"pre_logits.fc1.": "classifier.0.", "pre_logits.fc2.": "classifier.3."}


class Refused(Exception):
    def __init__(self, what, hint=None):
        super().__init__(what)
        self.hint = hint


def read(path, trust):
    """What the file holds, and the metadata that shoal left in it, if it did."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("shoal", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, about
    about = {}
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith("/extra/shoal.json"):
                    about = json.loads(archive.read(name))
    # text of Python 2 comes without an encoding; weights_only has its own way with it
    how = {"weights_only": False, "encoding": "latin1"} if trust else {"weights_only": True}
    try:
        return torch.load(path, map_location="cpu", **how), about
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        why = next((line for line in lines if "WeightsUnpickler error" in line), lines[0])
        what = f"PyTorch cannot read {path}: {why.strip().split('. Please use')[0]}"
        hint = None if trust else "if you know where it comes from: --trust reads any pickle, which may run any code"
        raise Refused(what, hint) from None


def unwrap(content, path):
    """The state dict of a checkpoint, and what stands beside it."""
    beside = {}
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            beside = {name: value for name, value in content.items() if isinstance(value, (int, str))}
            content = content[key]
            break
    if not isinstance(content, dict):
        raise Refused(f"{path} holds a {type(content).__name__}, and no dict of tensors")
    state = {}
    for name, tensor in content.items():
        if isinstance(tensor, torch.Tensor):
            state[name.decode("latin1") if isinstance(name, bytes) else str(name)] = tensor
    if not state:
        raise Refused(f"{path} holds no tensors, but {', '.join(map(str, list(content)[:8]))}")
    return state, beside


def rename(name):
    """Without what wrappers of parallel training, DeeperCluster's `body` and timm put into names."""
    for wrapper in ("module.body.", "body.", "module."):
        if name.startswith(wrapper):
            name = name[len(wrapper) :]
            break
    name = name.replace(".module", "")
    for theirs, ours in TIMM_VGG.items():
        if name.startswith(theirs):
            return ours + name[len(theirs) :]
    return name


def recognise(state):
    """Architecture, and channels of its first convolution."""
    first = state.get("features.0.weight")
    if first is not None and first.dim() == 4:
        outputs, channels, kernel, _ = first.shape
        if (outputs, kernel) in FIRST:
            return FIRST[outputs, kernel], channels
    first = state.get("conv1.weight")
    if first is not None and first.dim() == 4:
        return "resnet50" if "layer1.0.conv3.weight" in state else "resnet18", first.shape[1]
    known = ", ".join([*LINEARS, *RESNETS])
    some = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in list(state.items())[:4])
    raise Refused(f"its tensors are of no architecture known here, they begin with {some}", f"shoal knows {known}")


def last_side(arch, size):
    """Side of the last map for images of `size` pixels; None if nothing is left."""

    def shrink(side, kernel, stride, padding):
        room = side + 2 * padding - kernel
        return room // stride + 1 if room >= 0 else None

    side = size
    for _, kernel, stride, padding, pooled in CONVS[arch]:
        side = shrink(side, kernel, stride, padding)
        if side and pooled:
            side = shrink(side, *POOLS[arch])
        if not side:
            return None
    return side


def size_of(arch, state, border, asked, about):
    """The images that its linear layers are for, with a border of so many pixels. Where any would do: 224, or 64 for `small`."""
    if arch in RESNETS or arch == "small":
        return asked or int(about.get("size", 64 if arch == "small" else 224))
    columns = state.get(f"classifier.{LINEARS[arch][0][0]}.weight", torch.empty(0, 0)).flatten(1).shape[1]
    maps = CONVS[arch][-1][0]

    def fits(size):
        side = last_side(arch, size)
        return side is not None and side * side * maps == columns

    usual = [int(about["size"])] if "size" in about else []
    for size in [asked] if asked else [*usual, 224 + 2 * border, *range(1, LARGEST_SIZE)]:
        if fits(size):
            return size
    if asked:
        raise Refused(f"its first linear layer takes {columns} values, which images of {asked} pixels do not give")
    return 224 + 2 * border


def expected(arch, channels, size):
    """Names and shapes of everything that is trained or counted."""
    shapes = {}

    def conv(name, inputs, outputs, kernel, bias):
        shapes[f"{name}.weight"] = (outputs, inputs, kernel, kernel)
        if bias:
            shapes[f"{name}.bias"] = (outputs,)

    def norm(name, maps):
        for which in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{which}"] = (maps,)

    inputs = channels
    if arch in RESNETS:
        blocks, expansion = RESNETS[arch]
        conv("conv1", inputs, 64, 7, bias=False)
        norm("bn1", 64)
        inputs = 64
        for stage, count in enumerate(blocks):
            width = 64 << stage
            kernels = [3, 3] if expansion == 1 else [1, 3, 1]
            for number in range(count):
                name, before = f"layer{stage + 1}.{number}", inputs
                for position, kernel in enumerate(kernels, start=1):
                    outputs = width * expansion if position == len(kernels) else width
                    conv(f"{name}.conv{position}", inputs, outputs, kernel, bias=False)
                    norm(f"{name}.bn{position}", outputs)
                    inputs = outputs
                if number == 0 and (stage > 0 or before != inputs):
                    conv(f"{name}.downsample.0", before, inputs, 1, bias=False)
                    norm(f"{name}.downsample.1", inputs)
        return shapes

    place = 0
    for maps, kernel, _, _, pooled in CONVS[arch]:
        conv(f"features.{place}", inputs, maps, kernel, bias=True)
        norm(f"features.{place + 1}", maps)
        inputs, place = maps, place + 3 + pooled
    side = SMALL_SIDE if arch == "small" else last_side(arch, size)
    inputs *= side * side
    for place, outputs in LINEARS[arch]:
        shapes[f"classifier.{place}.weight"] = (outputs, inputs)
        shapes[f"classifier.{place}.bias"] = (outputs,)
        inputs = outputs
    return shapes


def sobel():
    """The fixed filter: mean of the channels, then gradients along x and y."""
    along_x = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
    return {
        "sobel.0.weight": torch.full((1, 3, 1, 1), 1 / 3),
        "sobel.0.bias": torch.zeros(1),
        "sobel.1.weight": torch.stack([along_x, along_x.T])[:, None].contiguous(),
        "sobel.1.bias": torch.zeros(2),
    }


def check_sobel(state, channels):
    """A filter in the file must be the one that shoal has, in front of a network that takes its two maps."""
    found = {name: tensor for name, tensor in state.items() if name.startswith("sobel.")}
    if not found:
        return
    if channels != 2:
        raise Refused(f"it has a Sobel filter, yet its first convolution takes {channels} channels")
    for name, tensor in sobel().items():
        if name in found and not (found[name].shape == tensor.shape and torch.allclose(found[name].float(), tensor)):
            raise Refused(f"its {name} is not the filter that shoal has, which is fixed")


def check(body, shapes, arch):
    """Every tensor there, in its shape, and nothing else."""
    missing = [name for name in shapes if name not in body]
    if missing:
        raise Refused(f"of {arch}, {listed(missing)} missing")
    unknown = [name for name in body if name not in shapes]
    if unknown:
        raise Refused(f"{listed(unknown)} unknown to {arch}", "--drop PREFIX leaves tensors aside")
    for name, shape in shapes.items():
        if tuple(body[name].shape) != shape:
            raise Refused(f"of {arch}, {name} should have shape {list(shape)}, found {list(body[name].shape)}")


def listed(names):
    some = ", ".join(names[:4])
    return f"{some} and {len(names) - 4} more are" if len(names) > 4 else f"{some} {'is' if len(names) == 1 else 'are'}"


def convert(arguments):
    content, about = read(arguments.checkpoint, arguments.trust)
    wrapped, beside = unwrap(content, arguments.checkpoint)
    state = {}
    for name, tensor in wrapped.items():
        if state.setdefault(rename(name), tensor) is not tensor:
            raise Refused(f"{name} and another tensor would both be called {rename(name)}")

    arch, channels = recognise(state)
    if channels not in (2, 3):
        raise Refused(f"its first convolution takes {channels} channels; shoal's networks take 3, or the 2 of a Sobel filter")
    check_sobel(state, channels)
    notes = []
    deeper = arch == "vgg16" and (arguments.deeper or any(is_deeper(name) for name in wrapped))
    if deeper:
        notes += deeper_notes(arguments.size)
    elif arch == "vgg16" and any(name.startswith("module.features.") for name in wrapped):
        notes.append("DeeperCluster's networks pad their images: if this is one of them, say so with --deeper")

    drops = (*HEADS, *arguments.drop)
    if arguments.keep_top_layer:
        drops = tuple(prefix for prefix in drops if prefix != "top_layer.")
    aside, counters, kept, body = [], 0, {}, {}
    for name, tensor in state.items():
        if name.startswith(drops):
            aside.append(name)
        elif name.endswith(".num_batches_tracked"):
            counters += 1
        elif name.startswith("top_layer."):
            kept[name] = tensor
        elif not name.startswith("sobel."):
            # timm's convolutions in the place of linear layers
            body[name] = tensor.flatten(1) if name.startswith("classifier.") and tensor.dim() == 4 else tensor
    size = size_of(arch, body, int(deeper), arguments.size, about)
    check(body, expected(arch, channels, size), arch)

    broken = [name for name, tensor in body.items() if not torch.isfinite(tensor).all()]
    if broken:
        notes.append(f"{listed(broken)} not finite")
    stated = about.get("arch", beside.get("arch"))
    if stated not in (None, arch) and stated in {**CONVS, **RESNETS}:
        notes.append(f"the file says that it is {stated}, its tensors are those of {arch}")

    metadata = {key: str(beside[key]) for key in ("epoch", "step") if key in beside}
    if "top_layer.bias" in state:
        metadata["k"] = str(state["top_layer.bias"].numel())
    input_ = "sobel" if channels == 2 else "rgb"
    metadata |= {"dropout": "0.5", **about, "arch": arch, "input": input_, "size": str(size)}
    if "views" in metadata and json.loads(metadata["views"]).get("size") != size:
        del metadata["views"]
    tensors = {**body, **kept, **(sobel() if input_ == "sobel" else {})}
    tensors = {name: tensor.detach().float().contiguous().clone() for name, tensor in sorted(tensors.items())}
    save(tensors, metadata, arguments.out)

    found = [arch, f"{input_} input", f"{size} pixels"]
    found += [f"{key} {metadata[key]}" for key in ("k", "epoch", "step") if key in metadata]
    print(f"{arguments.checkpoint}: {', '.join(found)}")
    if aside or counters:
        words = sorted({name.rsplit(".", 1)[0] for name in aside}) + ([f"{counters} counters of batches"] if counters else [])
        print(f"left aside: {', '.join(words)}")
    print(f"{len(tensors)} tensors -> {arguments.out}")
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)


def is_deeper(name):
    return name.startswith(("module.body.", "body.", "module.pred_layer.", "pred_layer."))


def deeper_notes(size):
    of = "" if size else ", hence 226 for its 224"
    return [
        "DeeperCluster puts a border of one pixel of 0 (after normalisation) around an image, inside of which everything is as in "
        f"shoal. shoal has no such border: the network is written for images that include it{of}, and pixels of the photograph "
        "take its place. Features differ by what those see."
    ]


def save(tensors, metadata, out):
    unfinished = out.with_name(out.name + ".part")
    try:
        save_file(tensors, unfinished, metadata={"shoal": json.dumps(metadata, sort_keys=True)})
        # as for any other file: safetensors lets the owner alone read
        umask = os.umask(0)
        os.umask(umask)
        unfinished.chmod(0o666 & ~umask)
        os.replace(unfinished, out)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise Refused(f"cannot write {out}: {error}") from None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path, metavar="OUT.safetensors")
    parser.add_argument("--trust", action="store_true", help="read a pickle that may run code")
    parser.add_argument("--size", type=int, help="side of the images in pixels, where several would fit")
    parser.add_argument("--keep-top-layer", action="store_true", help="keep top_layer, which shoal leaves aside")
    parser.add_argument("--drop", action="append", default=[], metavar="PREFIX", help="leave aside what begins so (repeatable)")
    parser.add_argument("--deeper", action="store_true", help="it is DeeperCluster's VGG-16, though its names do not say so")
    arguments = parser.parse_args()
    if arguments.out.suffix != ".safetensors":
        parser.error(f"{arguments.out} should end in .safetensors")
    if not arguments.checkpoint.is_file():
        parser.error(f"there is no file {arguments.checkpoint}")
    try:
        convert(arguments)
    except Refused as refused:
        print(f"error: {refused}", file=sys.stderr)
        if refused.hint:
            print(f"hint: {refused.hint}", file=sys.stderr)
        sys.exit(3)


if __name__ == "__main__":
    main()
