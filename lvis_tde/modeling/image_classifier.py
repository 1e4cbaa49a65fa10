"""Images to classes: a backbone, its pooled features, and the predictor behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from torch import Tensor, nn

from .image_predictor import TDEImagePredictor

__all__ = ["ImageClassifier"]

# {"image": (N, 3, H, W), "class": (N,), ...}, or one dict an image
Batch = Mapping[str, Any] | Sequence[Mapping[str, Any]]


@META_ARCH_REGISTRY.register()
class ImageClassifier(nn.Module):
    """A classifier of images with TDE, for long-tailed sets.

    In training mode it returns losses, else probabilities. Where the predictor trains its
    classifier only, the backbone is frozen: no gradient, and its batch norm keeps its statistics.

    Attributes:
        backbone (Backbone): its last output is pooled.
        predictor (TDEImagePredictor): what the features meet.
        pixel_mean, pixel_std (Tensor): (3, 1, 1) buffers, RGB in [0, 255].
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        predictor: TDEImagePredictor,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ):
        """
        Args:
            backbone: its last output is (N, D, h, w), or (N, D) where it is pooled already.
            predictor: of D features.
            pixel_mean, pixel_std: of the channels, RGB in [0, 255].

        Raises:
            ValueError: if the predictor takes another number of features than the backbone gives.
        """
        super().__init__()
        self.backbone = backbone
        self.predictor = predictor
        self._output, shape = list(backbone.output_shape().items())[-1]
        if shape.channels != predictor.cls_score.in_features:
            raise ValueError(
                f"The backbone's {self._output!r} has {shape.channels} channels, but the predictor "
                f"takes {predictor.cls_score.in_features} features."
            )
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            channels = torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
            self.register_buffer(name, channels, persistent=False)
        self.frozen = bool(predictor.train_only)
        if self.frozen:
            self.backbone.requires_grad_(False)
        self.train(self.training)

    @classmethod
    def from_config(cls, cfg):
        backbone = build_backbone(cfg)
        shape = list(backbone.output_shape().values())[-1]
        return {
            "backbone": backbone,
            "predictor": TDEImagePredictor(cfg, shape),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def train(self, mode: bool = True) -> ImageClassifier:
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def preprocess_image(self, batch: Batch) -> Tensor:
        """Normalized images, (N, 3, H, W), on the model's device.

        Their memory format stays: images that come channels last leave so.

        Args:
            batch: ``{"image": (N, 3, H, W)}``, or Detectron2's ``[{"image": (3, H, W)}, ...]``; RGB
                in [0, 255], uint8 or floating.

        Raises:
            ValueError: if there are no such images, or they differ in size.
        """
        if isinstance(batch, Mapping):
            images = batch["image"]
        else:
            shapes = {tuple(one["image"].shape) for one in batch}
            if len(shapes) != 1:
                raise ValueError(
                    f"Images of the shapes {sorted(shapes)} make no batch: resize them to one "
                    "(INPUT.CLASSIFICATION), or pass them one by one."
                )
            images = torch.stack([one["image"] for one in batch])
        channels = len(self.pixel_mean)
        if images.dim() != 4 or images.shape[1] != channels:
            raise ValueError(
                f"Images have shape {tuple(images.shape)}, expected (N, {channels}, H, W)."
            )
        images = images.to(self.device, non_blocking=True).to(self.pixel_mean.dtype)
        return (images - self.pixel_mean) / self.pixel_std

    def features(self, batch: Batch) -> Tensor:
        """Pooled features, (N, D), fp32 at least where they are pooled here.

        Args:
            batch: see :meth:`preprocess_image`.
        """
        images = self.preprocess_image(batch)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            found = self.backbone(images)[self._output]
        if found.dim() == 2:
            return found
        return found.mean((2, 3), dtype=torch.promote_types(found.dtype, torch.float32))

    def forward(self, batch: Batch) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """
        Args:
            batch: see :meth:`preprocess_image`; in training with "class", (N,) int64 in [0, C), or
                one of them an image. With mixup also "class_b" and "weight", see
                :class:`~.image_losses.ImageLoss`.

        Returns:
            ``{"loss_cls": scalar}`` in training mode; else ``{"probabilities": (N, C)}``, or
            ``[{"probabilities": (C,)}, ...]`` for a list.
        """
        predictions = self.predictor(self.features(batch))
        if self.training:
            labels = {name: self._labels(batch, name) for name in ("class", "class_b", "weight")}
            if labels["class"] is None:
                raise ValueError("The images have no 'class', which training needs.")
            mixed = {"labels_b": labels["class_b"], "weight": labels["weight"]}
            mixed = {} if labels["class_b"] is None else mixed
            return self.predictor.losses(predictions, labels["class"], **mixed)
        probabilities = self.predictor.predict_probs(predictions)
        if isinstance(batch, Mapping):
            return {"probabilities": probabilities}
        return [{"probabilities": row} for row in probabilities]

    def _labels(self, batch: Batch, name: str) -> Tensor | None:
        if isinstance(batch, Mapping):
            values = batch.get(name)
        else:
            values = [one[name] for one in batch] if all(name in one for one in batch) else None
        return None if values is None else torch.as_tensor(values).to(self.device)
