"""Sigmoid cross entropy and the federated loss, which Detectron2 main has and release 0.6 has not.

Names, numbers and random draws are those of main, so that configs, checkpoints and results go
across. Where Detectron2 has them, its own code runs: :data:`BoxPredictor` is the predictor to
build on.

Shape shorthand: R regions, C foreground classes. Logits are (R, C + 1) as those of a softmax; the
last column belongs to no class and is never used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Instances
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "BoxPredictor",
    "FixedWeights",
    "ImageCountWeights",
    "SigmoidFastRCNNOutputLayers",
    "class_weights",
    "federated_classes",
    "sigmoid_cross_entropy",
]


def sigmoid_cross_entropy(logits: Tensor, labels: Tensor, kept: Tensor | None = None) -> Tensor:
    """Binary cross entropies, summed over classes and averaged over regions.

    Args:
        logits: (R, C + 1), the last column unused.
        labels: (R,) in [0, C]; C is the background, which is no object of any class.
        kept: (C,) bool, the classes that count (federated loss); None for all.

    Returns:
        Tensor: scalar; 0 without regions.
    """
    targets = torch.zeros_like(logits)
    targets[torch.arange(len(logits), device=logits.device), labels.long()] = 1
    loss = F.binary_cross_entropy_with_logits(logits[:, :-1], targets[:, :-1], reduction="none")
    if kept is not None:
        loss = loss * kept
    return loss.sum() / max(len(logits), 1)


def federated_classes(labels: Tensor, weights: Tensor, num_kept: int) -> Tensor:
    """The classes of a batch, filled up with randomly drawn ones.

    Args:
        labels: (R,) in [0, C]; the background, if there, is one of the ``num_kept``.
        weights: (C,) chance of each class to be drawn, not normalized.
        num_kept: how many at least, as far as there are classes with a chance.

    Returns:
        Tensor: (C,) bool.
    """
    present = labels.long().unique()
    kept = torch.zeros(len(weights) + 1, dtype=torch.bool, device=weights.device)
    kept[present] = True
    chance = torch.cat([weights.float(), weights.new_zeros(1).float()])
    chance[present] = 0
    drawn = min(num_kept - len(present), int(chance.count_nonzero()))
    if drawn > 0:
        kept[torch.multinomial(chance, drawn)] = True
    return kept[:-1]


def class_weights(datasets: str | Sequence[str], power: float) -> Tensor:
    """Image counts of the classes of a registered data set, to a power.

    Args:
        datasets: names; the counts are those of the first.
        power: 0.5 in Detectron2's LVIS configs.

    Returns:
        Tensor: (C,) float32.

    Raises:
        ValueError: if the counts are not known.
    """
    name = datasets if isinstance(datasets, str) else next(iter(datasets), "")
    counts = MetadataCatalog.get(name).get("class_image_count")
    if counts is None:
        raise ValueError(
            f"The loss needs image counts of the classes, and the metadata of {name!r} has no "
            "class_image_count: Detectron2 0.6 has none for its own LVIS sets. Give the file with "
            "--train-data JSON IMAGES, which counts."
        )
    ordered = sorted(counts, key=lambda record: record["id"])
    return torch.tensor([record["image_count"] for record in ordered]).float() ** power


class FixedWeights:
    """``get_fed_loss_cls_weights`` for numbers that are known, which a config file can hold."""

    def __init__(self, weights: Sequence[float]):
        """
        Args:
            weights: (C,), not negative.
        """
        self.weights = torch.tensor([float(weight) for weight in weights])

    def __call__(self) -> Tensor:
        # Each predictor has its own: it is a buffer that checkpoints are loaded into.
        return self.weights.clone()


class ImageCountWeights:
    """``get_fed_loss_cls_weights`` for a registered data set, which a config file can hold.

    It looks the counts up when it is called, so a config that names another set has its counts.
    """

    def __init__(self, datasets: str | Sequence[str], power: float = 0.5):
        """
        Args:
            datasets, power: see :func:`class_weights`.
        """
        self.datasets = datasets
        self.power = power

    def __call__(self) -> Tensor:
        return class_weights(self.datasets, self.power)


class SigmoidFastRCNNOutputLayers(FastRCNNOutputLayers):
    """Detectron2's box predictor of release 0.6, with main's sigmoids beside the softmax.

    Arguments, weights and buffers have main's names.
    """

    @configurable
    def __init__(
        self,
        input_shape,
        *,
        use_sigmoid_ce: bool = False,
        use_fed_loss: bool = False,
        get_fed_loss_cls_weights: Callable[[], Tensor] | None = None,
        fed_loss_num_classes: int = 50,
        **kwargs,
    ):
        """
        Args:
            input_shape (ShapeSpec): shape of the input feature to this module.
            use_sigmoid_ce: a sigmoid for each class in place of one softmax.
            use_fed_loss: only the classes of a batch and some random others count in the loss.
            get_fed_loss_cls_weights: gives their chances, see :func:`federated_classes`.
            fed_loss_num_classes: number of classes that count.
            **kwargs: those of :class:`FastRCNNOutputLayers`.

        Raises:
            ValueError: if the federated loss is asked for without sigmoids, or its weights are not
                there or not as many as there are classes.
        """
        super().__init__(input_shape, **kwargs)
        self.use_sigmoid_ce = use_sigmoid_ce
        self.use_fed_loss = use_fed_loss
        self.fed_loss_num_classes = fed_loss_num_classes
        if not use_fed_loss:
            return
        if not use_sigmoid_ce or get_fed_loss_cls_weights is None:
            raise ValueError(
                "use_fed_loss=True needs use_sigmoid_ce=True and get_fed_loss_cls_weights, got "
                f"{use_sigmoid_ce} and {get_fed_loss_cls_weights}."
            )
        weights = get_fed_loss_cls_weights()
        if len(weights) != self.num_classes:
            raise ValueError(
                f"get_fed_loss_cls_weights gives {len(weights)} weights for {self.num_classes} "
                "classes."
            )
        self.register_buffer("fed_loss_cls_weights", weights.clone())

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape) -> dict[str, Any]:
        # A config that was made without this package's keys has none of these in release 0.6.
        options = cfg.MODEL.ROI_BOX_HEAD
        power = options.get("FED_LOSS_FREQ_WEIGHT_POWER", 0.5)
        return {
            **super().from_config(cfg, input_shape),
            "use_sigmoid_ce": options.get("USE_SIGMOID_CE", False),
            "use_fed_loss": options.get("USE_FED_LOSS", False),
            "get_fed_loss_cls_weights": lambda: class_weights(cfg.DATASETS.TRAIN, power),
            "fed_loss_num_classes": options.get("FED_LOSS_NUM_CLASSES", 50),
        }

    def losses(self, predictions, proposals: list[Instances]) -> dict[str, Tensor]:
        losses = super().losses(predictions, proposals)
        if self.use_sigmoid_ce:
            logits, labels = predictions[0], [p.gt_classes for p in proposals]
            gt_classes = torch.cat(labels) if labels else logits.new_empty(0)
            kept = None
            if self.use_fed_loss and len(logits):
                kept = federated_classes(
                    gt_classes, self.fed_loss_cls_weights, self.fed_loss_num_classes
                )
            loss = sigmoid_cross_entropy(logits, gt_classes, kept)
            losses["loss_cls"] = loss * self.loss_weight.get("loss_cls", 1.0)
        return losses

    def predict_probs(self, predictions, proposals: list[Instances]):
        if not self.use_sigmoid_ce:
            return super().predict_probs(predictions, proposals)
        return predictions[0].sigmoid().split([len(p) for p in proposals])


# Detectron2's own where it has the losses: tested by feature, since all releases are called 0.6.
BoxPredictor: Any = (
    FastRCNNOutputLayers
    if hasattr(FastRCNNOutputLayers, "sigmoid_cross_entropy_loss")
    else SigmoidFastRCNNOutputLayers
)
