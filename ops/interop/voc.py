"""What PyTorch, scikit-learn and torchvision make of the same inputs, for tests/voc07.rs.

    python voc.py kit ROOT            objects and sizes of all images of the kit in ROOT, by torchvision, as JSON
    python voc.py measure FOLDER      FOLDER/in.safetensors: logits, targets, counts -> out: loss, gradient, precision
    python voc.py train FOLDER        FOLDER/in.safetensors: weight, bias, inputs, targets, counts -> out: weight, bias

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


if __name__ == "__main__":
    command, path = sys.argv[1], Path(sys.argv[2])
    {"kit": kit, "measure": measure, "train": train}[command](path)
