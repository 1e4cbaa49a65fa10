"""The classifier of images with what is beside it: the box predictor without boxes and background.

As there, the meaning of an output never depends on ``self.training``: ``forward`` gives factual
logits, ``losses`` sees the labels and updates the mean, ``predict_probs`` applies TDE and what else
of :mod:`lvis_tde.posthoc` is set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.utils.events import EventStorage, get_event_storage
from torch import Tensor, nn

from ..config import tde_options
from ..layers.classifier import CosineMultiHeadClassifier
from ..layers.feature_mean import RunningFeatureMean
from ..layers.functional import NO_NORM, at_least_fp32
from ..posthoc.margins import check_counts
from .image_losses import ImageLoss
from .statistics import ClassStatistics, ExactBuffers
from .strengths import DEFAULT_ALPHA
from .with_mean import WithFeatureMean

__all__ = ["ScaledClassifier", "TDEImagePredictor"]

# (N, C) factual logits, (N, D) classifier input
Predictions = tuple[Tensor, Tensor]

TRAIN_ONLY = ("", "classifier", "scales")

# Iterations between two looks at the diagnostics: each waits for the device. Detectron2 writes as
# often.
_PERIOD = 20


class ScaledClassifier(CosineMultiHeadClassifier):
    """A frozen classifier whose logits have one learned factor a class (LWS, Kang, ICLR 2020).

    Attributes:
        scales (Parameter): (out_features,), 1 at the start.
    """

    def __init__(self, *args, **kwargs):
        """See :class:`CosineMultiHeadClassifier`."""
        super().__init__(*args, **kwargs)
        self.requires_grad_(False)
        self.scales = nn.Parameter(torch.ones(self.out_features))

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features) * self.scales

    def effect_terms(self, features: Tensor, feature_mean: Tensor) -> tuple[Tensor, Tensor]:
        cosine, pull = super().effect_terms(features, feature_mean)
        return cosine, pull * self.scales[:, None]


class TDEImagePredictor(WithFeatureMean, ExactBuffers):
    """Predicts the classes of images with the total direct effect.

    Attributes:
        num_classes (int): C.
        cls_score (CosineMultiHeadClassifier): gives the factual logits.
        feature_mean (RunningFeatureMean): over all images, part of checkpoints.
        statistics (ClassStatistics): likewise; unknown until they are gathered.
        loss (ImageLoss): of the training.
        train_only (str): what is trained: all (""), or one of the second stages of ``TRAIN_ONLY``.

    What may be changed on a trained model is in :class:`~.strengths.Strengths`.
    """

    has_background = False
    use_sigmoid_ce = False
    class_counts: Tensor | None

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_classes: int,
        norm: str = "deconfound",
        num_heads: int = 2,
        tau: float = 16.0,
        gamma: float = 1 / 32,
        alpha: float = DEFAULT_ALPHA,
        alpha_region: float | None = None,
        background_exempt: bool = True,
        posthoc: Mapping[str, Any] | None = None,
        mean_momentum: float = 0.9998,
        loss: ImageLoss | None = None,
        class_counts: Sequence[int] = (),
        train_only: str = "",
    ):
        """
        Args:
            input_shape: shape of the pooled features.
            num_classes: C.
            norm, num_heads, tau, gamma: see :class:`CosineMultiHeadClassifier`.
            alpha: strength of the removal, >= 0; 0 turns TDE off. The authors have 1.0 for
                CIFAR-10, 1.5 for CIFAR-100, 3.0 for ImageNet.
            alpha_region: of sigmoids, which there are none of: None or -1.
            background_exempt: without a meaning here; the box predictor has it.
            posthoc: see :class:`~.fast_rcnn.TDEFastRCNNOutputLayers`.
            mean_momentum: mu of the running mean, in [0, 1); the authors have 0.9 for CIFAR.
            loss: the training's; None for the cross entropy.
            class_counts: training images of each class, for the losses that need them; empty for
                those of :attr:`statistics`.
            train_only: "" trains all. "classifier" is for a new classifier on frozen features (cRT)
                and "scales" for one factor a class on a frozen classifier (LWS). The mean stays
                what it is under both, since the features do.

        Raises:
            ValueError: if an argument is out of its range, or does not go with another.
        """
        super().__init__()
        if train_only not in TRAIN_ONLY:
            raise ValueError(
                f"train_only={train_only!r} (MODEL.IMAGE_CLASSIFIER.TRAIN_ONLY) must be one of "
                f"{', '.join(map(repr, TRAIN_ONLY))}."
            )
        self.loss = ImageLoss() if loss is None else loss
        if self.loss.name == "ldam" and norm == NO_NORM:
            raise ValueError(
                "LDAM's margin is one of cosines, which norm='none' (MODEL.TDE.NORM) does not "
                "give: choose 'cosine' with it, or another loss (MODEL.IMAGE_CLASSIFIER.LOSS)."
            )
        if self.loss.name == "ldam" and tau != self.loss.ldam_scale:
            raise ValueError(
                f"LDAM's scale is {self.loss.ldam_scale:g} (MODEL.IMAGE_CLASSIFIER.LDAM_SCALE), "
                f"and the classifier's factor on the cosines is tau={tau:g} (MODEL.TDE.TAU): they "
                "are one number, set both to it."
            )
        self.num_classes = num_classes
        self.train_only = train_only
        classifier = ScaledClassifier if train_only == "scales" else CosineMultiHeadClassifier
        in_features = input_shape.channels
        self.cls_score = classifier(
            in_features, num_classes, num_heads=num_heads, tau=tau, gamma=gamma, norm=norm
        )
        self.feature_mean = RunningFeatureMean(in_features, momentum=mean_momentum)
        self.statistics = ClassStatistics(num_classes, in_features)
        counts = check_counts(class_counts, num_classes) if len(class_counts) else None
        self.register_buffer("class_counts", counts, persistent=False)
        self.calibrated_alpha: float | None = None
        self._start(alpha, alpha_region, background_exempt, posthoc)

    @classmethod
    def from_config(cls, cfg, input_shape):
        options = tde_options(cfg, boxes=False)
        node = cfg.MODEL.IMAGE_CLASSIFIER
        loss = ImageLoss(
            name=node.LOSS,
            focal_gamma=node.FOCAL_GAMMA,
            ldam_margin=node.LDAM_MARGIN,
            ldam_scale=node.LDAM_SCALE,
            defer_iter=node.DEFER_ITER,
            defer_beta=node.DEFER_BETA,
        )
        return {
            "input_shape": input_shape,
            "num_classes": node.NUM_CLASSES,
            "loss": loss,
            "class_counts": node.CLASS_COUNTS,
            "train_only": node.TRAIN_ONLY,
            **options,
        }

    def forward(self, features: Tensor) -> Predictions:
        """
        Args:
            features: (N, D), one row an image.

        Returns:
            tuple: (N, C) factual logits, fp32 at least, and ``features``.
        """
        return self.cls_score(features), features

    def losses(
        self,
        predictions: Predictions,
        labels: Tensor,
        labels_b: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The loss on the factual logits; also moves the running mean.

        What was known of the logits' statistics, and what was chosen for these weights, is
        forgotten, since they are about to move. Under ``torch.no_grad`` all stays. It takes its
        iteration from Detectron2's event storage.

        Args:
            predictions: what :meth:`forward` returned.
            labels: (N,) int64 in [0, C).
            labels_b, weight: of mixup, see :class:`ImageLoss`.

        Returns:
            dict: ``{"loss_cls": scalar}``.

        Raises:
            ValueError: if the loss needs the classes' counts, and they are not known.
        """
        logits, features = predictions
        storage = get_event_storage()
        if torch.is_grad_enabled():
            self._observe(logits, features, labels, storage)
            self.statistics.forget_logits()
            self.calibrated_alpha, self.chosen = None, ""
        counts = self._counts() if self.loss.needs_counts(storage.iter) else None
        loss = self.loss(logits, labels, counts, storage.iter, labels_b, weight)
        return {"loss_cls": loss}

    def predict_probs(self, predictions: Predictions) -> Tensor:
        """Probabilities after TDE and what else is set in :attr:`posthoc`.

        Args:
            predictions: what :meth:`forward` returned.

        Returns:
            Tensor: (N, C) in [0, 1], fp32 at least; rows sum to 1.

        Raises:
            ValueError: if a setting needs statistics of the classes that are not known.
        """
        logits, features = at_least_fp32(predictions[0]), predictions[1]
        steps = self.composition()
        if not steps.uses_tde:
            return steps(logits, features=features)
        return steps(logits, *self._tde_terms(logits, features), features)

    @torch.no_grad()
    def _observe(
        self, logits: Tensor, features: Tensor, labels: Tensor, storage: EventStorage
    ) -> None:
        """Moves the mean, and reports every now and then."""
        if self.train_only:
            return
        if storage.iter % _PERIOD:
            self.feature_mean.update(features, None)
            return
        count, norm, cosine = self._move_mean(features, None)
        accuracy = (logits.argmax(-1) == labels).float().mean()
        num_images, mean_norm, to_mean, right = torch.stack(
            [count, norm, cosine, accuracy]
        ).tolist()
        if num_images == 0:
            return
        storage.put_scalar("tde/mean_norm", mean_norm)
        if to_mean == to_mean:  # NaN where only other processes have images
            storage.put_scalar("tde/cosine_to_mean", to_mean)
            storage.put_scalar("image_classifier/accuracy", right)

    def _counts(self) -> Tensor:
        if self.class_counts is not None:
            return self.class_counts
        if not self.statistics.num_images > 0:
            raise ValueError(
                f"loss={self.loss.name!r}, defer_iter={self.loss.defer_iter} "
                "(MODEL.IMAGE_CLASSIFIER.LOSS, DEFER_ITER) needs the training images of each "
                "class, which this model does not know: pass class_counts (CLASS_COUNTS)."
            )
        return self.statistics.images

    def _weight_norms(self) -> dict[str, Any]:
        known = super()._weight_norms()
        if isinstance(self.cls_score, ScaledClassifier):
            scales = self.cls_score.scales.double()
            known["weight_norms"] = known["weight_norms"] * scales.abs()
            known["bias"] = None if known["bias"] is None else known["bias"] * scales
        return known
