"""What a class-balanced classifier can tell apart: top-1 over training images per class.

The classes of the detection set ``small``, one glyph per picture, as many pictures of each. Every
training takes the same number of steps; the test pictures are balanced too.
"""

import json
import math
import tempfile
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from lvis_tde.data.emoji_lt import load_emoji_lt, make_emoji_lt
from lvis_tde.data.glyphs import SIZES

__all__ = ["add_arguments", "run"]

WIDTHS = (32, 64, 128, 256)
SHIFT = 3  # pixels; glyphs are mirrored and moved anew each time they are seen
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 5e-4
WARM_UP = 0.1  # of the steps; a cosine follows
WORST = 8


def add_arguments(parser):
    """Options of ``benchmark.py glyph_classifier``."""
    parser.add_argument("--classes", type=int, default=SIZES["small"]["num_classes"])
    parser.add_argument("--per-class", type=int, nargs="+", default=[5, 10, 20, 50, 100, 200])
    parser.add_argument("--test-per-class", type=int, default=25)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=600, help="of each training")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--font", help="font file; found on the system by default")
    parser.add_argument("--root", help="folder to keep the pictures in; default: none is kept")


def run(args):
    """Top-1, top-5, and how often the family is right, per number of training images."""
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = make_emoji_lt(
            args.root or temporary,
            num_classes=args.classes,
            image_size=args.image_size,
            imbalance=1,
            train_per_class=max(args.per_class),
            calib_per_class=1,
            test_per_class=args.test_per_class,
            seed=args.seed,
            font=args.font,
        )
        classes = json.loads((folder / "classes.json").read_text("utf-8"))["classes"]
        train, test = (_tensors(folder, split, args.device) for split in ("train", "test"))
    names = [c["name"] for c in classes]
    families = np.unique([c["family"] for c in classes], return_inverse=True)[1]
    labels, curve = test[1].cpu().numpy(), {}
    for number in args.per_class:
        # Those of a class are in a row, and each was drawn on its own.
        first = torch.arange(len(train[1])).view(len(names), -1)[:, :number].flatten()
        start = time.process_time()
        model = _train(train[0][first], train[1][first], len(names), args)
        seconds = time.process_time() - start
        scores = _scores(model, test[0], args.batch)
        curve[number] = {**_rates(scores, labels, families), "CPU seconds": seconds}
    return {
        "benchmark": f"{len(names)} glyphs at {args.image_size} px, as many of each",
        "weights": sum(p.numel() for p in model.parameters()),
        "steps": args.steps,
        "batch": args.batch,
        "torch": torch.__version__,
        "% by training images per class": curve,
        f"least told apart, {number} per class (% of the first)": _confused(
            scores.argmax(axis=1), labels, names
        ),
    }


def _rates(scores, labels, families):
    """Scores (N, C), labels (N,), family of each class (C,)."""
    ranked = np.argsort(-scores, axis=1)
    guesses, num_classes = ranked[:, 0], len(families)
    right = np.bincount(labels[guesses == labels], minlength=num_classes)
    recall = right / np.bincount(labels, minlength=num_classes)
    return {
        "top-1": 100 * float((guesses == labels).mean()),
        "top-5": 100 * float((ranked[:, :5] == labels[:, None]).any(axis=1).mean()),
        "family": 100 * float((families[guesses] == families[labels]).mean()),
        "classes below one half": 100 * float((recall < 0.5).mean()),
    }


def _tensors(folder, split, device):
    images, labels = (torch.from_numpy(array).to(device) for array in load_emoji_lt(folder, split))
    return images.permute(0, 3, 1, 2), labels  # strided as channels_last


def _network(num_classes):
    layers, channels = [], 3
    for width in WIDTHS:
        layers += [
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        ]
        channels = width
    layers[-1] = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, num_classes))


def _train(images, labels, num_classes, args):
    torch.manual_seed(args.seed)
    model = _network(num_classes).to(args.device, memory_format=torch.channels_last).train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others}],
        lr=LEARNING_RATE,
        momentum=MOMENTUM,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1, (step + 1) / (WARM_UP * args.steps))
        * (1 + math.cos(math.pi * step / args.steps))
        / 2,
    )
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(args.steps):
        while len(order) < args.batch:
            order = torch.cat([order, torch.randperm(len(labels))])
        chosen, order = order[: args.batch], order[args.batch :]
        loss = F.cross_entropy(model(_augment(_scaled(images[chosen]))), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def _scaled(images):
    return (images.float() - 127.5) / 64


def _augment(images):
    """Mirror every other picture, and move all of a batch by the same few pixels."""
    mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    images = torch.where(mirrored, images.flip(3), images)
    down, right = torch.randint(2 * SHIFT + 1, (2,)).tolist()
    height, width = images.shape[2:]
    padded = F.pad(images, (SHIFT,) * 4, mode="reflect")
    moved = padded[:, :, down : down + height, right : right + width]
    return moved.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def _scores(model, images, batch):
    parts = images.split(batch)
    return torch.cat([model(_scaled(part)) for part in parts]).cpu().numpy()


def _confused(guesses, labels, names):
    """The pairs of a class and what it is most often taken for."""
    table = np.zeros((len(names), len(names)), np.int64)
    np.add.at(table, (labels, guesses), 1)
    share = 100 * table / table.sum(axis=1, keepdims=True)
    np.fill_diagonal(share, 0)
    worst = np.argsort(-share, axis=None, kind="stable")[:WORST]
    rows, columns = np.unravel_index(worst, share.shape)
    return {f"{names[r]} as {names[c]}": float(share[r, c]) for r, c in zip(rows, columns)}
