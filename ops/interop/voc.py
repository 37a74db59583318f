"""What PyTorch, scikit-learn and torchvision make of the same inputs, for tests/voc07.rs.

    python voc.py kit ROOT            objects and sizes of all images of the kit in ROOT, by torchvision, as JSON
    python voc.py measure FOLDER      FOLDER/in.safetensors: logits, targets, counts -> out: loss, gradient, precision
    python voc.py train FOLDER        FOLDER/in.safetensors: weight, bias, inputs, targets, counts -> out: weight, bias
    python voc.py segment FOLDER      FOLDER/in.safetensors: images, classes, a network -> out: scores, loss, gradients of its score layers

`measure` computes in float64. `train` takes a step of SGD for each of the inputs, with the settings that stand below and in the test.
"""

import json
import sys
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import average_precision_score
from torchvision.datasets import VOCDetection, VOCSegmentation

LR, MOMENTUM, WEIGHT_DECAY, CLIP = 0.05, 0.9, 1e-2, 0.7


def kit(root):
    images = {}
    for split in ("trainval", "test"):
        # The kit of 2007 keeps train, val and test in one folder; torchvision looks at the folder alone.
        dataset = VOCDetection(root, year="2007", image_set=split, download=False)
        for image, target in dataset:
            annotation = target["annotation"]
            objects = [
                [thing["name"], thing["difficult"] == "1"] + [int(thing["bndbox"][key]) for key in ("xmin", "ymin", "xmax", "ymax")]
                for thing in annotation.get("object", [])
            ]
            name = annotation["filename"].removesuffix(".jpg")
            size = [int(annotation["size"][key]) for key in ("width", "height", "depth")]
            assert size[:2] == list(image.size), name
            images[name] = {"split": split, "size": size[:2], "objects": objects}
    masks = {}
    for year in ("2007", "2012"):
        for split in ("train", "val"):
            dataset = VOCSegmentation(root, year=year, image_set=split, download=False)
            for path, (image, mask) in zip(dataset.masks, dataset):
                assert mask.mode == "P" and mask.size == image.size, path
                assert mask.getpalette()[3:9] == [128, 0, 0, 0, 128, 0] and mask.getpalette()[-3:] == [224, 224, 192], path
                classes = sorted({value for _, value in mask.getcolors()} - {0, 255})
                masks[f"{year}/{Path(path).stem}"] = {"split": split, "classes": classes}
    json.dump({"images": images, "masks": masks}, sys.stdout)


def sigmoid_loss(logits, targets, counts):
    each = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (each * counts).sum() / len(logits)


def measure(folder):
    given = {name: tensor.double() for name, tensor in load_file(folder / "in.safetensors").items()}
    logits = given["logits"].requires_grad_()
    loss = sigmoid_loss(logits, given["targets"], given["counts"])
    loss.backward()
    precisions = []
    for scores, targets, counts in zip(given["logits"].detach().T, given["targets"].T, given["counts"].T):
        kept = counts > 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = average_precision_score(targets[kept].numpy(), scores[kept].numpy()) if targets[kept].any() else -1.0
        precisions.append(found)
    out = {"loss": loss.detach(), "gradient": logits.grad, "precision": torch.tensor(precisions, dtype=torch.float64)}
    save_file(out, folder / "out.safetensors")


def train(folder):
    given = load_file(folder / "in.safetensors")
    weight, bias = (torch.nn.Parameter(given[name]) for name in ("weight", "bias"))
    optimizer = torch.optim.SGD([weight, bias], lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    for inputs, targets, counts in zip(given["inputs"], given["targets"], given["counts"]):
        optimizer.zero_grad()
        sigmoid_loss(inputs @ weight.T + bias, targets, counts).backward()
        torch.nn.utils.clip_grad_norm_([weight, bias], CLIP)
        optimizer.step()
    save_file({"weight": weight.detach(), "bias": bias.detach()}, folder / "out.safetensors")


# Kernel, stride and padding of each convolution, and whether a pool follows.
ALEXNET = [(11, 4, 2, True), (5, 1, 2, True), (3, 1, 1, False), (3, 1, 1, False), (3, 1, 1, True)]
VGG16 = [(3, 1, 1, at in (1, 3, 6, 9, 12)) for at in range(13)]


def pooled_maps(given, x, table, pool):
    """The map after each pool."""
    functional, found, place = torch.nn.functional, [], 0
    for _, stride, padding, is_pooled in table:
        conv, norm = f"features.{place}.", f"features.{place + 1}."
        x = functional.conv2d(x, given[conv + "weight"], given[conv + "bias"], stride, padding)
        statistics = given[norm + "running_mean"], given[norm + "running_var"]
        x = functional.batch_norm(x, *statistics, given[norm + "weight"], given[norm + "bias"]).relu()
        place += 3
        if is_pooled:
            x = functional.max_pool2d(x, *pool)
            found.append(x)
            place += 1
    return found


def triangle(side):
    """Bilinear interpolation as a kernel, as Caffe's filler writes it."""
    factor = (side + 1) // 2
    centre = factor - 1 if side % 2 == 1 else factor - 0.5
    line = 1 - (torch.arange(side) - centre).abs() / factor
    return line[:, None] * line[None, :]


def segment(folder):
    functional, given = torch.nn.functional, load_file(folder / "in.safetensors")
    scored = [name for name in given if name.startswith("score.")]
    for name in scored:
        given[name].requires_grad_()
    depth = sum(name.endswith(".weight") for name in scored)
    is_alexnet = given["features.0.weight"].shape[-1] == 11
    table, pool, side = (ALEXNET, (3, 2), 6) if is_alexnet else (VGG16, (2, 2), 7)
    before = 98 if is_alexnet else 99
    padded = functional.pad(given["images"], [before, before + 32] * 2)
    maps = pooled_maps(given, padded, table, pool)
    x = maps[-1]
    first = 1 if is_alexnet else 0
    for name, kernel in ((f"classifier.{first}.", side), (f"classifier.{first + 3}.", 1)):
        weight = given[name + "weight"]
        weight = weight.reshape(len(weight), -1, kernel, kernel)
        x = functional.conv2d(x, weight, given[name + "bias"]).relu()
    x = functional.conv2d(x, given["score.0.weight"], given["score.0.bias"])
    # Offsets of the published networks: voc-fcn-alexnet, voc-fcn32s, voc-fcn16s, voc-fcn8s.
    for at, scale, offset in [(1, 1e-2, 5), (2, 1e-4, 9)][: depth - 1]:
        x = functional.conv_transpose2d(x, given[f"score.{at}.upsampling"], stride=2)
        own = functional.conv2d(maps[-1 - at] * scale, given[f"score.{at}.weight"], given[f"score.{at}.bias"])
        x = x + own[..., offset : offset + x.shape[-2], offset : offset + x.shape[-1]]
    kernel, stride, offset = (63, 32, 18) if is_alexnet else [(64, 32, 19), (32, 16, 27), (16, 8, 31)][depth - 1]
    x = functional.conv_transpose2d(x, triangle(kernel).expand(21, 1, kernel, kernel), stride=stride, groups=21)
    height, width = given["images"].shape[-2:]
    scores = x[..., offset : offset + height, offset : offset + width]
    loss = functional.cross_entropy(scores, given["classes"].long(), ignore_index=255)
    loss.backward()
    out = {"scores": scores.detach().contiguous(), "loss": loss.detach()}
    out |= {"gradient." + name: given[name].grad for name in scored}
    save_file(out, folder / "out.safetensors")


if __name__ == "__main__":
    command, path = sys.argv[1], Path(sys.argv[2])
    {"kit": kit, "measure": measure, "train": train, "segment": segment}[command](path)
