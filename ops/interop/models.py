"""The networks of shoal, defined a second time in plain PyTorch, to compare the two.

    models.py check DIR      loads DIR/model.safetensors strictly by name, runs `images` of DIR/io.safetensors through it in
                             evaluation mode, and compares with the `features` and `layer:NAME` activations found there
    models.py publish DIR    writes DIR/published.safetensors, an AlexNet as DeepCluster's checkpoints name its tensors
                             (`features.module.N`, with a `top_layer`, without metadata), and DIR/io.safetensors

tests/interop.rs calls it. It needs torch, torchvision and safetensors (ops/peers.sh). The definitions follow the paper
and its published files, not shoal's code. Exit status: 0 the same within TOLERANCE, 1 not, with a line for each output
that differs.
"""

import json
import sys
from pathlib import Path

import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

TOLERANCE = 1e-4

VGG16 = [64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512, "pool"]


def sobel():
    gray = nn.Conv2d(3, 1, kernel_size=1)
    gradients = nn.Conv2d(1, 2, kernel_size=3, padding=1)
    with torch.no_grad():
        gray.weight.fill_(1 / 3)
        gray.bias.zero_()
        along_x = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
        gradients.weight.copy_(torch.stack([along_x, along_x.T])[:, None])
        gradients.bias.zero_()
    return nn.Sequential(gray, gradients).requires_grad_(False)


class Network(nn.Module):
    """`sobel` (or nothing), `features`, `classifier` up to its last linear layer."""

    def __init__(self, features, classifier, with_sobel):
        super().__init__()
        self.sobel = sobel() if with_sobel else None
        self.features = features
        self.classifier = classifier

    def forward(self, images):
        if self.sobel is not None:
            images = self.sobel(images)
        return self.classifier(self.features(images).flatten(1))


def alexnet(with_sobel, size):
    def block(inputs, outputs, kernel, **where):
        return [nn.Conv2d(inputs, outputs, kernel, **where), nn.BatchNorm2d(outputs), nn.ReLU()]

    def pool():
        return nn.MaxPool2d(kernel_size=3, stride=2)

    features = nn.Sequential(
        *block(2 if with_sobel else 3, 96, 11, stride=4, padding=2), pool(),
        *block(96, 256, 5, padding=2), pool(),
        *block(256, 384, 3, padding=1),
        *block(384, 384, 3, padding=1),
        *block(384, 256, 3, padding=1), pool(),
    )  # fmt: skip
    classifier = nn.Sequential(
        nn.Dropout(0.5), nn.Linear(width(features, with_sobel, size), 4096), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4096, 4096)
    )
    relus = {"conv1": "features.2", "conv2": "features.6", "conv5": "features.16", "fc6": "classifier.2"}
    return Network(features, classifier, with_sobel), relus


def vgg16(with_sobel, size):
    features, inputs = [], 2 if with_sobel else 3
    for outputs in VGG16:
        if outputs == "pool":
            features.append(nn.MaxPool2d(kernel_size=2, stride=2))
            continue
        features += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
        inputs = outputs
    features = nn.Sequential(*features)
    fc6 = nn.Linear(width(features, with_sobel, size), 4096)
    classifier = nn.Sequential(fc6, nn.ReLU(), nn.Dropout(0.5), nn.Linear(4096, 4096))
    relus = {"conv1_1": "features.2", "conv3_3": "features.22", "conv5_3": "features.42", "fc6": "classifier.1"}
    return Network(features, classifier, with_sobel), relus


def small(with_sobel, size):
    features, inputs = [], 2 if with_sobel else 3
    for outputs, kernel, stride, pooled in [(32, 5, 2, False), (64, 3, 1, True), (128, 3, 1, True), (256, 3, 1, False)]:
        features += [nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2)]
        features += [nn.BatchNorm2d(outputs), nn.ReLU()]
        features += [nn.MaxPool2d(kernel_size=3, stride=2, padding=1)] if pooled else []
        inputs = outputs
    # a module that averages has no tensors, hence may follow the last place
    features = nn.Sequential(*features, nn.AdaptiveAvgPool2d(2))
    relus = {"conv1": "features.2", "conv4": "features.13"}
    return Network(features, nn.Sequential(nn.Dropout(0.5), nn.Linear(256 * 2 * 2, 256)), with_sobel), relus


def width(features, with_sobel, size):
    """What the maps of one image flatten to."""
    with torch.no_grad():
        return features.eval()(torch.zeros(1, 2 if with_sobel else 3, size, size)).numel()


def resnet(build):
    def make(with_sobel, size):
        network = build(weights=None)
        network.fc = nn.Identity()
        if with_sobel:
            network.sobel = sobel()
            network.conv1 = nn.Conv2d(2, 64, kernel_size=7, stride=2, padding=3, bias=False)
            network.register_forward_pre_hook(lambda module, inputs: (module.sobel(inputs[0]),))
        return network, {"conv1": "relu", "layer1": "layer1", "layer4": "layer4"}

    return make


NETWORKS = {
    "alexnet": alexnet,
    "vgg16": vgg16,
    "small": small,
    "resnet18": resnet(torchvision.models.resnet18),
    "resnet50": resnet(torchvision.models.resnet50),
}


def check(folder):
    path = folder / "model.safetensors"
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["shoal"])
    network, modules = NETWORKS[about["arch"]](about["input"] == "sobel", int(about["size"]))
    fixed = {name: tensor.clone() for name, tensor in network.state_dict().items() if name.startswith("sobel.")}
    state = load_file(path)
    network.load_state_dict(state, strict=True)
    for name, tensor in fixed.items():
        assert torch.equal(state[name], tensor), f"{name} is not the fixed filter"

    expected = load_file(folder / "io.safetensors")
    images = expected.pop("images")
    outputs = {}
    for layer in [name.removeprefix("layer:") for name in expected if name.startswith("layer:")]:
        keep_first_output(network.get_submodule(modules[layer]), f"layer:{layer}", outputs)
    network.eval()
    with torch.no_grad():
        outputs["features"] = network(images)
    return all([same(name, outputs[name], tensor) for name, tensor in expected.items()])


def keep_first_output(module, name, outputs):
    """Of a module that runs several times (torchvision's `relu`), the first output counts."""

    def keep(_module, _inputs, output):
        outputs.setdefault(name, output.clone())

    module.register_forward_hook(keep)


def same(name, ours, theirs):
    """Within TOLERANCE, relative to outputs that spread by more than 1 (random networks amplify).

    A constant proves nothing.
    """
    if ours.shape != theirs.shape:
        print(f"{name}: shape {tuple(theirs.shape)}, expected {tuple(ours.shape)}")
        return False
    difference = (ours - theirs).abs().max().item()
    spread = ours.std().item()
    if difference <= TOLERANCE * max(1.0, spread) and spread > 100 * TOLERANCE:
        return True
    print(f"{name}: differs by {difference:.2e} where the outputs spread by {spread:.2e}")
    return False


def publish(folder):
    torch.manual_seed(1)
    network, _ = alexnet(with_sobel=True, size=224)
    spread_out(network)
    with torch.no_grad():
        images = torch.randn(2, 3, 224, 224)
        features = network.eval()(images)
    state = {
        name.replace("features.", "features.module."): tensor
        for name, tensor in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    state["top_layer.weight"], state["top_layer.bias"] = torch.randn(10, 4096), torch.zeros(10)
    save_file(state, folder / "published.safetensors")
    save_file({"images": images, "features": features}, folder / "io.safetensors")


def spread_out(network):
    """Statistics and scales that differ, so that no two tensors can be mistaken for each other."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.2, 0.2)
                module.running_mean.uniform_(-0.1, 0.1)
                module.running_var.uniform_(0.2, 0.5)


def main():
    if len(sys.argv) != 3 or sys.argv[1] not in ("check", "publish"):
        sys.exit(__doc__)
    command, folder = sys.argv[1], Path(sys.argv[2])
    if command == "publish":
        publish(folder)
    elif not check(folder):
        sys.exit(1)


if __name__ == "__main__":
    main()
