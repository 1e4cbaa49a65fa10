"""Regions of training images: as they are, under strong augmentation, and under a last layer that
was fitted anew without them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from detectron2.data import DatasetCatalog
from torch import Tensor, nn
from torch.nn import functional as F

from lvis_tde.calibration.hold_out import calibration_images
from lvis_tde.calibration.settings import tde_predictors
from lvis_tde.modeling.sigmoid import federated_classes, sigmoid_cross_entropy

from .sigmoid_parts_regions import PER_REGION, Regions
from .sigmoid_parts_runs import FINAL, Run, open_model, pass_over

__all__ = [
    "SAMPLES",
    "augment",
    "of_images",
    "refitted",
    "regions_of_sources",
]

SHARE = 0.1  # of the images of each class: about as many as the held-out split has
PER_CLASS = 8  # images of each class, as far as there are
SAMPLES = ("share", "balanced")
FOLDS = 2
BATCH = 512  # regions of a step: 8 images of 64, as in the demo's training


def augment(image: Tensor, generator: torch.Generator) -> Tensor:
    """Colors, blur, noise, holes and another size; boxes stay where they are relative to it.

    Args:
        image: (3, H, W), 0 to 255.
        generator: all random numbers are its.

    Returns:
        Tensor: (3, H', W') float32, 0 to 255, H' and W' within 0.6 to 1.7 times the old ones.
    """

    def draw(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    image = image.float()
    height, width = image.shape[1:]
    gray = image.mean(0, keepdim=True)
    image = gray + draw(0.0, 2.0) * (image - gray)
    mean = image.mean()
    image = (mean + draw(0.5, 1.5) * (image - mean)) * draw(0.5, 1.5)
    sharpness = draw(0.5, 1.0)
    image = _resize(image, round(height * sharpness), round(width * sharpness))
    image = _resize(image, height, width)
    noise = torch.randn(image.shape, generator=generator)
    image = image + draw(0.0, 12.0) * noise
    hole = max(1, min(height, width) // 10)
    for _ in range(8):
        top, left = int(draw(0, height - hole + 1)), int(draw(0, width - hole + 1))
        image[:, top : top + hole, left : left + hole] = mean
    size, shape = math.exp(draw(-0.36, 0.36)), math.exp(draw(-0.15, 0.15))
    image = _resize(image, round(height * size * shape), round(width * size / shape))
    return image.clamp(0, 255)


def _resize(image: Tensor, height: int, width: int) -> Tensor:
    options: dict[str, Any] = {"mode": "bilinear", "antialias": True, "align_corners": False}
    return F.interpolate(image[None], (max(1, height), max(1, width)), **options)[0]


def _augmented(batch: list[dict]) -> list[dict]:
    """The same change of an image every time."""
    return [
        {**one, "image": augment(one["image"], torch.Generator().manual_seed(one["image_id"]))}
        for one in batch
    ]


def of_images(regions: Regions, images: set[int]) -> Regions:
    """The regions of some images."""
    kept = [one["image_id"] in images for one in regions.images]
    numbers = torch.tensor([one["number"] for one in regions.images])
    rows = torch.tensor(kept).repeat_interleave(numbers)
    tensors = {name: getattr(regions, name)[rows] for name in PER_REGION}
    return replace(
        regions, images=[one for one, yes in zip(regions.images, kept) if yes], **tensors
    )


def regions_of_sources(run: Run) -> tuple[dict[str, Regions], dict[str, set[int]]]:
    """Passes over both held-out splits and the training images, and the samples of the latter.

    Returns:
        Of "val", "held out", "training", "augmented" and "refitted" the regions; of
        :data:`SAMPLES` the ids of training images. Only those are augmented.
    """
    cfg, model, shared = open_model(run, run.folder / FINAL)
    records = DatasetCatalog.get(run.names["train"])
    classes_of = {r["image_id"]: [o["category_id"] for o in r["annotations"]] for r in records}
    samples = {
        "share": calibration_images(classes_of, SHARE),
        "balanced": calibration_images(classes_of, PER_CLASS),
    }
    sampled = samples["share"] | samples["balanced"]

    def make(split: str, numbers: Sequence[int] | None = None, **options: Any) -> Regions:
        if numbers is None:
            numbers = range(len(DatasetCatalog.get(run.names[split])))
        columns = pass_over(cfg, model, run.names[split], numbers, **options)
        return Regions(run, split, **shared, **columns)

    found = {"val": make("val"), "held out": make("calib"), "training": make("train")}
    some = [number for number, r in enumerate(records) if r["image_id"] in sampled]
    found["augmented"] = make("train", some, change=_augmented)
    found["refitted"] = refitted(found["training"], cfg, *tde_predictors(model))
    return found, samples


def refitted(regions: Regions, cfg, predictor) -> Regions:
    """Logits and TDE's terms by classifiers that were fitted to the other images' regions.

    Half of the images each; from new random weights, by the recipe of the training (steps, rates,
    decay, clipping), on features that stay. They have seen all images.
    """
    numbers = torch.tensor([one["number"] for one in regions.images])
    order = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(regions.run.seed))
    fold = (order.argsort() % FOLDS).repeat_interleave(numbers)
    logits, pulls = torch.empty_like(regions.logits), regions.logits.new_empty(0)
    for number in range(FOLDS):
        torch.manual_seed(number)
        left, rest = fold == number, fold != number
        classifier = copy.deepcopy(predictor.cls_score)
        classifier.reset_parameters()
        loss = loss_of(predictor)
        fit(classifier, regions.features[rest], regions.labels[rest], loss, cfg.SOLVER)
        with torch.no_grad():
            logits[left] = classifier(regions.features[left])
            pulls = torch.cat([pulls, classifier.effect_terms(regions.mean[None], regions.mean)[1]])
    # One pull a fold does not fit into the columns: the cosine takes its place, head by head.
    heads = regions.cosine.shape[1]
    cosine = regions.cosine.new_zeros(len(logits), FOLDS * heads)
    for number in range(FOLDS):
        rows = fold == number
        cosine[rows, number * heads : (number + 1) * heads] = regions.cosine[rows]
    pull = torch.cat(pulls.split(regions.logits.shape[1]), dim=1)
    return replace(regions, logits=logits, cosine=cosine, pull=pull)


def loss_of(predictor) -> Callable[[Tensor, Tensor], Tensor]:
    """The classification loss of a predictor."""
    if not predictor.use_sigmoid_ce:
        return F.cross_entropy

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        kept = None
        if predictor.use_fed_loss:
            weights, number = predictor.fed_loss_cls_weights, predictor.fed_loss_num_classes
            kept = federated_classes(labels, weights, number)
        return sigmoid_cross_entropy(logits, labels, kept)

    return loss


def fit(
    classifier: nn.Module,
    features: Tensor,
    labels: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    solver,
) -> None:
    """Trains it as the detector's training did; half of a step's regions show objects.

    Args:
        classifier: changed.
        features: (R, D).
        labels: (R,) in [0, C], C where there is no object.
        loss: of logits and labels.
        solver: ``cfg.SOLVER``.
    """
    optimizer = torch.optim.SGD(
        classifier.parameters(),
        lr=solver.BASE_LR,
        momentum=solver.MOMENTUM,
        weight_decay=solver.WEIGHT_DECAY,
    )
    background = classifier.weight.shape[0] - 1
    pools = [torch.nonzero(part)[:, 0] for part in (labels < background, labels == background)]
    for step in range(solver.MAX_ITER):
        rate = solver.BASE_LR * solver.GAMMA ** sum(step >= one for one in solver.STEPS)
        optimizer.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / (solver.WARMUP_ITERS + 1))
        rows = torch.cat([pool[torch.randint(len(pool), (BATCH // 2,))] for pool in pools])
        optimizer.zero_grad()
        loss(classifier(features[rows]), labels[rows]).backward()
        for parameter in classifier.parameters():
            if solver.CLIP_GRADIENTS.ENABLED:
                nn.utils.clip_grad_norm_(parameter, solver.CLIP_GRADIENTS.CLIP_VALUE)
        optimizer.step()
