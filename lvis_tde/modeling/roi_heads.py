"""ROI heads that differ from upstream's in the box predictor alone."""

from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import CascadeROIHeads, Res5ROIHeads, StandardROIHeads

from .fast_rcnn import TDEFastRCNNOutputLayers, refuse_sigmoid
from .postprocess import with_large_vocabulary_inference

__all__ = ["TDEROIHeads", "TDECascadeROIHeads", "TDERes5ROIHeads"]


def _refuse_sigmoid(cfg):
    # Before upstream builds its own predictor, which would ask for a data set's class counts.
    refuse_sigmoid({key.lower(): value for key, value in cfg.MODEL.ROI_BOX_HEAD.items()})


def _tde_predictor(cfg, upstream, **changes):
    """The TDE predictor for the input that the predictor ``upstream`` was built for."""
    shape = ShapeSpec(channels=upstream.cls_score.in_features)
    return TDEFastRCNNOutputLayers(cfg, shape, **changes)


@ROI_HEADS_REGISTRY.register()
class TDEROIHeads(StandardROIHeads):
    """:class:`StandardROIHeads` with :class:`TDEFastRCNNOutputLayers`, for FPN models."""

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        _refuse_sigmoid(cfg)
        options = super()._init_box_head(cfg, input_shape)
        options["box_predictor"] = _tde_predictor(cfg, options["box_predictor"])
        return options


@ROI_HEADS_REGISTRY.register()
class TDECascadeROIHeads(CascadeROIHeads):
    """:class:`CascadeROIHeads` with a TDE predictor, and so a running mean, for every stage.

    The probabilities after TDE are averaged over the stages, as upstream averages its own.
    """

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        _refuse_sigmoid(cfg)
        options = super()._init_box_head(cfg, input_shape)
        options["box_predictors"] = [
            _tde_predictor(cfg, stage, box2box_transform=stage.box2box_transform)
            for stage in options["box_predictors"]
        ]
        return options

    def _forward_box(self, features, proposals, targets=None):
        method = super()._forward_box
        if not self.training and self.box_predictor[-1].fast_nms:
            method = with_large_vocabulary_inference(method)
        return method(features, proposals, targets)


@ROI_HEADS_REGISTRY.register()
class TDERes5ROIHeads(Res5ROIHeads):
    """:class:`Res5ROIHeads` with :class:`TDEFastRCNNOutputLayers`, for C4 models."""

    @classmethod
    def from_config(cls, cfg, input_shape):
        _refuse_sigmoid(cfg)
        options = super().from_config(cfg, input_shape)
        options["box_predictor"] = _tde_predictor(cfg, options["box_predictor"])
        return options
