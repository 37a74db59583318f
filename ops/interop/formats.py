"""Networks in PyTorch's formats: makes them as others do, and reads back what shoal exports.

    formats.py make DIR            writes DIR/NAME.safetensors, a network of each architecture, and DIR/NAME.io.safetensors, images
                                   and what the definitions of models.py make of them
    formats.py legacy DIR          writes checkpoints as others published them, and their .io.safetensors: see `legacy`
    formats.py state-dicts DIR     DIR/NAME.pth and DIR/NAME.published.pth hold what DIR/NAME.safetensors holds
    formats.py scripts DIR         DIR/NAME.pt and DIR/NAME.LAYER.pt give what the definitions give
    formats.py libraries DIR       DIR/NAME.torchvision.pth and the like load into torchvision's own models, and timm's where it is

tests/export.rs calls it. Exit status: 0 all the same, else an error that names the file.
"""

import io
import json
import pickle
import sys
import types
from collections import OrderedDict
from pathlib import Path

import torch
import torchvision
from models import NETWORKS, TOLERANCE, alexnet, keep_first_output, spread_out, vgg16
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

# architecture, Sobel, side of the images, layers that are exported too
MADE = {
    "alexnet": ("alexnet", True, 96, ["conv5", "fc6"]),
    "vgg16": ("vgg16", False, 32, ["conv3_3"]),
    "resnet18": ("resnet18", False, 64, ["layer1"]),
    "resnet50": ("resnet50", True, 64, []),
    "small": ("small", True, 28, ["conv4"]),
}


def build(name):
    arch, with_sobel, size, _ = MADE[name]
    network, layers = NETWORKS[arch](with_sobel, size)
    return network, layers, size


def random_network(name, seed):
    torch.manual_seed(seed)
    network, layers, size = build(name)
    spread_out(network)
    return network.eval(), layers, size


def without_counters(state):
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def make(folder):
    for seed, (name, (arch, with_sobel, size, wanted)) in enumerate(MADE.items()):
        network, layers, _ = random_network(name, seed)
        about = {"arch": arch, "input": "sobel" if with_sobel else "rgb", "size": str(size), "dropout": "0.5", "step": "70"}
        state = without_counters(network.state_dict())
        save_file(state, folder / f"{name}.safetensors", metadata={"shoal": json.dumps(about)})
        outputs = {}
        for layer in wanted:
            keep_first_output(network.get_submodule(layers[layer]), f"layer:{layer}", outputs)
        images = torch.randn(2, 3, size, size)
        with torch.no_grad():
            outputs["features"] = network(images)
        save_file({"images": images, **outputs}, folder / f"{name}.io.safetensors")


class Python2Pickler(pickle._Pickler):
    """Writes text as Python 2 did: bytes without an encoding."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_text(self, text):
        encoded = text.encode("ascii")
        self.write(b"U" + bytes([len(encoded)]) + encoded)
        self.memoize(text)

    dispatch[str] = save_text


def save_legacy(content, path):
    """The format of PyTorch before 1.6, with the text of Python 2."""

    def dump(value, file, protocol=2):
        Python2Pickler(file, protocol).dump(value)

    python2 = types.ModuleType("python2")
    python2.Pickler, python2.dump = Python2Pickler, dump
    torch.save(content, path, pickle_module=python2, pickle_protocol=2, _use_new_zipfile_serialization=False)
    assert b"U\x07storage" in path.read_bytes(), "text is that of Python 2"


class Deeper(nn.Module):
    """DeeperCluster's VGG-16: a border of two pixels, and gradients without padding."""

    def __init__(self, size):
        super().__init__()
        self.body, _ = vgg16(with_sobel=True, size=size + 2)
        self.body.sobel[1].padding = (0, 0)

    def forward(self, images):
        return self.body(nn.functional.pad(images, (2, 2, 2, 2)))


def legacy(folder):
    """deepcluster.pth.tar: DeepCluster's AlexNet, `features` in parallel, with its head. deeper.pth: DeeperCluster's VGG-16.
    torchvision.pth: a whole ResNet-18. odd.pth, short.pth: what should be refused. objects.pth: a pickle that runs code.
    """
    network, _, size = random_network("alexnet", 11)
    state = OrderedDict(
        (name.replace("features.", "features.module."), tensor)
        for name, tensor in without_counters(network.state_dict()).items()
    )
    state["top_layer.weight"], state["top_layer.bias"] = torch.randn(10, 4096), torch.zeros(10)
    save_legacy({"epoch": 500, "arch": "alexnet", "state_dict": state}, folder / "deepcluster.pth.tar")
    keep_io(network, size, folder / "deepcluster.io.safetensors")
    short = OrderedDict(state)
    del short["features.module.9.running_var"]
    save_legacy({"epoch": 1, "arch": "alexnet", "state_dict": short}, folder / "short.pth")
    save_legacy({"epoch": 1, "config": Path("anywhere"), "state_dict": state}, folder / "objects.pth")

    torch.manual_seed(12)
    network = Deeper(32)
    spread_out(network)
    state = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    state["module.pred_layer.weight"] = torch.randn(4, 4096)
    state["module.pred_layer.bias"] = torch.zeros(4)
    save_legacy({"epoch": 100, "state_dict": OrderedDict(state)}, folder / "deeper.pth")
    keep_io(network.eval(), 32, folder / "deeper.io.safetensors")

    torch.manual_seed(13)
    network = torchvision.models.resnet18(num_classes=10)
    spread_out(network)
    torch.save(network.state_dict(), folder / "torchvision.pth")
    network.fc = nn.Identity()
    keep_io(network.eval(), 64, folder / "torchvision.io.safetensors")
    torch.save({"features.0.weight": torch.zeros(64, 3, 11, 11)}, folder / "odd.pth")


def keep_io(network, size, path):
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        save_file({"images": images, "features": network(images)}, path)


def state_dicts(folder):
    for name, (arch, *_) in MADE.items():
        expected = load_file(folder / f"{name}.safetensors")
        for mapped in (False, True):
            found = torch.load(folder / f"{name}.pth", weights_only=True, mmap=mapped)
            assert type(found) is OrderedDict, type(found)
            equal(found, expected, name)
        build(name)[0].load_state_dict(found, strict=True)

        path = folder / f"{name}.published.pth"
        if not path.exists():
            continue
        checkpoint = torch.load(path, weights_only=True)
        assert (checkpoint["arch"], checkpoint["epoch"], checkpoint["step"]) == (arch, 0, 70)
        in_parallel = {name.replace("features.", "features.module."): tensor for name, tensor in expected.items()}
        equal(checkpoint["state_dict"], in_parallel, path)
        network = build(name)[0]
        network.features = nn.DataParallel(network.features)
        network.load_state_dict(checkpoint["state_dict"], strict=True)


def equal(found, expected, where):
    assert found.keys() == expected.keys(), f"{where}: {found.keys() ^ expected.keys()}"
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), f"{where}: {name}"


def scripts(folder):
    for name, (arch, with_sobel, size, wanted) in MADE.items():
        kept = load_file(folder / f"{name}.io.safetensors")
        about = {"shoal.json": ""}
        script = torch.jit.load(folder / f"{name}.pt", _extra_files=about)
        assert json.loads(about["shoal.json"])["arch"] == arch
        assert not script.training
        close(run(script, kept["images"]), kept["features"], name)
        for layer in wanted:
            close(run(torch.jit.load(folder / f"{name}.{layer}.pt"), kept["images"]), kept[f"layer:{layer}"], f"{name} {layer}")

        # tensors have their names, and are of the kind that optimisers look at
        network, _, _ = build(name)
        equal(script.state_dict(), load_file(folder / f"{name}.safetensors"), name)
        assert dict(script.named_parameters()).keys() == {
            parameter for parameter, tensor in network.named_parameters() if tensor.requires_grad
        }
        # sizes of images and batches that were not in sight when it was written
        if arch.startswith("resnet") or arch == "small":
            network.load_state_dict(script.state_dict())
            images = torch.randn(3, 3, size + 17, size + 4)
            close(run(script, images), run(network.eval(), images), f"{name} at another size")
        # saved again it is the same; it goes on to learn, in any precision
        script = saved_again(script)
        close(run(script, kept["images"]), kept["features"], f"{name}, saved again")
        script.double()
        script.train()
        script(kept["images"].double()).square().sum().backward()
        learning = [parameter.grad for which, parameter in script.named_parameters() if which.endswith("weight")]
        assert all(gradient.abs().sum() > 0 for gradient in learning), name


def saved_again(script):
    file = io.BytesIO()
    torch.jit.save(script, file)
    file.seek(0)
    return torch.jit.load(file)


def run(network, images):
    with torch.no_grad():
        return network(images)


def close(found, expected, where):
    assert found.shape == expected.shape, f"{where}: {found.shape} instead of {expected.shape}"
    difference, spread = (found - expected).abs().max().item(), expected.std().item()
    assert spread > 100 * TOLERANCE, f"{where}: a constant proves nothing"
    assert difference <= TOLERANCE * max(1.0, spread), f"{where}: differs by {difference:.2e} where outputs spread by {spread:.2e}"


def libraries(folder):
    kept = load_file(folder / "resnet18.io.safetensors")
    theirs = {"torchvision": torchvision.models.resnet18}
    try:
        import timm

        theirs["timm"] = timm.models.resnet18
    except ImportError:
        theirs["timm"] = torchvision.models.resnet18  # the same names
    for library, make_network in theirs.items():
        for state in (
            torch.load(folder / f"resnet18.{library}.pth", weights_only=True),
            load_file(folder / f"resnet18.{library}.safetensors"),
        ):
            network = make_network()
            outcome = network.load_state_dict(state, strict=False)
            assert sorted(outcome.missing_keys) == ["fc.bias", "fc.weight"], outcome
            assert not outcome.unexpected_keys, outcome
            assert network.bn1.num_batches_tracked == 70
            network.fc = nn.Identity()
            close(run(network.eval(), kept["images"]), kept["features"], library)


COMMANDS = {"make": make, "legacy": legacy, "state-dicts": state_dicts, "scripts": scripts, "libraries": libraries}


def main():
    if len(sys.argv) != 3 or sys.argv[1] not in COMMANDS:
        sys.exit(__doc__)
    torch.set_num_threads(1)
    COMMANDS[sys.argv[1]](Path(sys.argv[2]))


if __name__ == "__main__":
    main()
