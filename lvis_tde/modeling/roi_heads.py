"""ROI heads that differ from upstream's in the box predictor, and in what they do only once.

Same outputs: the NMS of all classes, and masks and keypoints of detections that share a box.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import CascadeROIHeads, Res5ROIHeads, StandardROIHeads
from torch import nn

from .distinct import distinct_boxes, stacked
from .fast_rcnn import TDEFastRCNNOutputLayers
from .intercept import intercepted
from .mask_head import SelectedClassMaskRCNNConvUpsampleHead
from .postprocess import large_vocabulary_inference

__all__ = ["TDEROIHeads", "TDECascadeROIHeads", "TDERes5ROIHeads"]


def _tde_predictor(cfg, upstream, **changes):
    """The TDE predictor for the input that the predictor ``upstream`` was built for."""
    shape = ShapeSpec(channels=upstream.cls_score.in_features)
    return TDEFastRCNNOutputLayers(cfg, shape, **changes)


class _WithTDEPredictors(nn.Module):
    """Refuses predictors without TDE, which explicit arguments (LazyConfig) can bring in.

    Masks and keypoints are computed once for all detections that share a box.
    """

    box_predictor: Any
    mask_head: Any

    def __init__(self, *args, **kwargs):
        """
        Raises:
            TypeError: if a box predictor has no TDE.
        """
        super().__init__(*args, **kwargs)
        predictors = self.box_predictor
        for predictor in predictors if isinstance(predictors, nn.ModuleList) else [predictors]:
            if not isinstance(predictor, TDEFastRCNNOutputLayers):
                raise TypeError(
                    f"{type(self).__name__} was given a {type(predictor).__name__} as box "
                    "predictor, which has no TDE. Use TDEFastRCNNOutputLayers, or the heads of "
                    "Detectron2 without TDE."
                )

    def forward_with_given_boxes(self, features, instances):
        """See upstream."""
        upstreams = super().forward_with_given_boxes  # type: ignore[misc]
        # Other mask heads know of no class that is another instance's.
        ours = isinstance(getattr(self, "mask_head", None), SelectedClassMaskRCNNConvUpsampleHead)
        shared = distinct_boxes(instances) if ours and self.mask_on else None
        if shared is None:
            return upstreams(features, instances)
        first, where = shared
        boxes = [one[index] for one, index in zip(instances, first)]

        def masks_of_all(forward, x, given):
            forward(x, instances, stacked(where, first))
            return given

        with intercepted(self.mask_head, "forward", masks_of_all):
            upstreams(features, boxes)
        for one, box, index in zip(instances, boxes, where):
            for name, value in box.get_fields().items():
                if not one.has(name):
                    one.set(name, value[index])
        return instances


@ROI_HEADS_REGISTRY.register()
class TDEROIHeads(_WithTDEPredictors, StandardROIHeads):
    """:class:`StandardROIHeads` with :class:`TDEFastRCNNOutputLayers`, for FPN models."""

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        options = super()._init_box_head(cfg, input_shape)
        options["box_predictor"] = _tde_predictor(cfg, options["box_predictor"])
        return options


@ROI_HEADS_REGISTRY.register()
class TDECascadeROIHeads(_WithTDEPredictors, CascadeROIHeads):
    """:class:`CascadeROIHeads` with a TDE predictor, and so a running mean, for every stage.

    The probabilities after TDE are averaged over the stages, as upstream averages its own.
    """

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        options = super()._init_box_head(cfg, input_shape)
        options["box_predictors"] = [
            _tde_predictor(cfg, stage, box2box_transform=stage.box2box_transform)
            for stage in options["box_predictors"]
        ]
        return options

    def _forward_box(self, features, proposals, targets=None):
        slow = not self.box_predictor[-1].fast_nms
        if self.training or slow or torch.jit.is_tracing():
            return super()._forward_box(features, proposals, targets)
        stages = []

        def record(predict_probs, predictions, proposals):
            stages.append((predict_probs(predictions, proposals), predictions, proposals))
            # Upstream leaves out what is not finite: its own NMS has nothing to do.
            return [torch.full((len(p), 2), torch.nan, device=p.device) for p in stages[-1][0]]

        with contextlib.ExitStack() as stack:
            for predictor in self.box_predictor:
                stack.enter_context(intercepted(predictor, "predict_probs", record))
            super()._forward_box(features, proposals)
        _, predictions, proposals = stages[-1]
        predictor = self.box_predictor[-1]
        # The order of upstream's operations, to the last bit.
        scores = [sum(image) * (1.0 / len(stages)) for image in zip(*(s for s, _, _ in stages))]
        instances, _ = large_vocabulary_inference(
            predictor.predict_boxes(predictions, proposals),
            scores,
            [p.image_size for p in proposals],
            predictor.test_score_thresh,
            predictor.test_nms_thresh,
            predictor.test_topk_per_image,
        )
        return instances


@ROI_HEADS_REGISTRY.register()
class TDERes5ROIHeads(_WithTDEPredictors, Res5ROIHeads):
    """:class:`Res5ROIHeads` with :class:`TDEFastRCNNOutputLayers`, for C4 models."""

    @classmethod
    def from_config(cls, cfg, input_shape):
        options = super().from_config(cfg, input_shape)
        options["box_predictor"] = _tde_predictor(cfg, options["box_predictor"])
        return options
