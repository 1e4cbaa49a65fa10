"""Augmented batches of small images: this project's loader, torchvision's usual one, and a step.

Both crop CIFAR-sized images with padding 4 and flip them. The usual one is a ``DataLoader`` over
``torchvision.datasets.CIFAR10`` with transforms; here over generated images, whose content does
not matter to either. The training step of the protocol's ResNet-32 stands beside them: a loader
that is not much faster holds it up.
"""

import itertools
import os
import time

import numpy as np
import torch
import torchvision
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from lvis_tde.data.classification.batches import TrainBatches
from lvis_tde.data.classification.loader import TrainLoader
from lvis_tde.data.classification.sets import ClassificationSet
from lvis_tde.engine import load_config

__all__ = ["add_arguments", "run"]

STEP = "training step, ResNet-32, from memory"
USUAL, OURS = "torchvision's DataLoader", "this project"
# Beyond crop and flip, both call torchvision image by image.
MORE = {
    "crop, flip": ({}, []),
    "crop, flip, RandAugment": ({"rand_augment": 9}, [transforms.RandAugment()]),
}


class Generated(datasets.CIFAR10):
    """The dataset's own code on images from memory in place of its files."""

    def __init__(self, images, labels, transform):
        datasets.VisionDataset.__init__(self, "", transform=transform)
        self.data, self.targets = images, labels.tolist()


def add_arguments(parser):
    """Options of ``benchmark.py classification_loader``."""
    parser.add_argument("--images", type=int, default=10847, help="of the set, 32 px")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each, after one batch")
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[0], help="processes (default: 0)"
    )
    parser.add_argument("--device", default="cpu", help="of the step (default: cpu)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)


def run(args):
    """Images per second of each loader by the clock, and by CPU time, which workers add to."""
    torch.set_num_threads(args.threads)
    random = np.random.default_rng(args.seed)
    images = random.integers(256, size=(args.images, 32, 32, 3), dtype=np.uint8)
    labels = random.integers(100, size=args.images)
    rates = {}
    for what, (options, steps) in MORE.items():
        for workers in args.workers:
            loaders = {
                USUAL: _usual(images, labels, steps, workers, args),
                OURS: _ours(images, labels, options, workers, args),
            }
            found = {name: _rate(loader, args) for name, loader in loaders.items()}
            wall = {name: one["images/s"] for name, one in found.items()}
            rates[f"{what}, {workers} workers"] = {**found, "ratio": wall[OURS] / wall[USUAL]}
    rates[STEP] = _rate(_steps(_ours(images, labels, MORE["crop, flip"][0], 0, args), args), args)
    return {
        "benchmark": f"batches of {args.batch} of {args.images} images, 32 px",
        "threads": args.threads,
        "CPUs": os.cpu_count(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "rates": rates,
    }


def _usual(images, labels, steps, workers, args):
    transform = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            *steps,
            transforms.ToTensor(),
        ]
    )
    dataset = Generated(images, labels, transform)
    return DataLoader(dataset, args.batch, shuffle=True, num_workers=workers, drop_last=True)


def _ours(images, labels, options, workers, args):
    batches = TrainBatches(
        ClassificationSet(labels, list(map(str, range(100))), images=images),
        batch_size=args.batch,
        seed=args.seed,
        size=32,
        crop_padding=4,
        flip=0.5,
        **options,
    )
    return TrainLoader(batches, workers if batches.image_by_image else 0)


def _steps(loader, args):
    """The batches of a loader, each after a step of training on it."""
    options = ["MODEL.META_ARCHITECTURE", "ImageClassifier", "MODEL.DEVICE", args.device]
    options += ["MODEL.BACKBONE.NAME", "build_cifar_resnet32_backbone"]
    model = build_model(load_config("", options)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    with EventStorage():
        for batch in loader:
            loss = sum(model(batch).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()  # waits for a GPU
            yield batch


def _rate(loader, args):
    """Images a second, by the clock and by this process's CPU time."""
    passes = itertools.chain.from_iterable(itertools.repeat(loader))
    next(passes)
    wall, cpu, shown = time.perf_counter(), time.process_time(), 0
    while not shown or time.perf_counter() - wall < args.seconds:
        batch = next(passes)
        shown += len(batch["image"] if isinstance(batch, dict) else batch[0])
    return {
        "images/s": shown / (time.perf_counter() - wall),
        "images per CPU second of this process": shown / (time.process_time() - cpu),
    }
