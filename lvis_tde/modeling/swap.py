"""TDE for a model that is already built: exchange its box predictors in place."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .fast_rcnn import TDEFastRCNNOutputLayers
from .postprocess import LargeVocabularyInference
from .sigmoid import SigmoidFastRCNNOutputLayers

__all__ = ["swap_box_predictor"]

logger = logging.getLogger(__name__)

# What upstream's predictor keeps of its arguments, under the same names in 0.6 and main.
_KEPT = (
    "box2box_transform",
    "num_classes",
    "test_score_thresh",
    "test_nms_thresh",
    "test_topk_per_image",
    "smooth_l1_beta",
    "box_reg_loss_type",
    "loss_weight",
)
# Of main's, and of this package's predictor for 0.6, under the same names.
_SIGMOID = ("use_sigmoid_ce", "use_fed_loss", "fed_loss_num_classes")
# The buffer of the federated loss; in CenterNet2, where release 0.6 has none, the second.
_CHANCES = ("fed_loss_cls_weights", "freq_weight")


def swap_box_predictor(model: nn.Module, **tde_options) -> nn.Module:
    """Puts the TDE predictor in the place of every box predictor of ``model``.

    Works on whatever holds a :class:`FastRCNNOutputLayers`, or a list of them (cascades), as
    ``box_predictor``: Detectron2's ROI heads and those of other projects, alone, in a detector, or
    in test-time augmentation. Call it before DistributedDataParallel wraps the model.

    Box regression, losses, thresholds, device and training mode stay as they are. The classifier
    keeps the old one's weight as its start, the same parameter object, so an optimizer built
    before goes on training it: all normalizations read a class from the weight's direction, and
    a checkpoint from before loaded after the swap gives the same model. A softmax's bias is dropped
    and the running mean starts at zero, so train before relying on the scores. Sigmoids stay
    sigmoids and keep their bias. With ``norm="none"`` a softmax's bias is kept too: the scores stay
    what they were, and
    :func:`~lvis_tde.calibration.estimate.estimate_feature_mean` is all that TDE then needs.
    Sigmoids, for which the default strength is far too much, get ``alpha=0`` unless it is given.

    Args:
        model: changed in place.
        **tde_options: arguments of :class:`TDEFastRCNNOutputLayers` of its own: ``norm``,
            ``num_heads``, ``tau``, ``gamma``, ``alpha``, ...

    Returns:
        nn.Module: ``model`` itself.

    Raises:
        TypeError: if a ``box_predictor`` is of a kind that cannot be exchanged.
        ValueError: if there is none, or it has TDE already or predicts rotated boxes, or
            DistributedDataParallel is around it. The model is then unchanged.
    """
    if any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        raise ValueError(
            "The model is wrapped in DistributedDataParallel, which goes on waiting for gradients "
            "of the parameters it was built with. Swap first, then wrap."
        )
    found = list(_find_predictors(model))
    if not found:
        raise ValueError(
            f"{type(model).__name__} has nothing to swap: none of its modules holds a "
            "`box_predictor`. TDE is for R-CNN models with FastRCNNOutputLayers."
        )
    # All are built before the first is put in place, so that an error leaves the model whole.
    swapped: dict[nn.Module, TDEFastRCNNOutputLayers] = {}
    for _, _, path, old in found:
        if old not in swapped:
            _check(path, old)
            swapped[old] = _tde_predictor_for(old, tde_options)
    for holder, name, path, old in found:
        holder.register_module(name, swapped[old])
        logger.info("%s is now a %s.", path, type(swapped[old]).__name__)
    return model


def _find_predictors(model: nn.Module) -> Iterator[tuple[nn.Module, str, str, nn.Module]]:
    """Yields (holder, name in the holder, path from ``model``, predictor)."""
    for prefix, module in model.named_modules():
        predictor = module._modules.get("box_predictor")
        path = f"{prefix}.box_predictor".lstrip(".")
        if isinstance(predictor, (nn.ModuleList, nn.Sequential)):
            for name, stage in predictor.named_children():
                yield predictor, name, f"{path}.{name}", stage
        elif predictor is not None:
            yield module, "box_predictor", path, predictor


def _check(path: str, predictor: nn.Module) -> None:
    kind = type(predictor)
    if isinstance(predictor, TDEFastRCNNOutputLayers):
        raise ValueError(
            f"{path} is a {kind.__name__} already. To change the strength of TDE set its `alpha`."
        )
    if not isinstance(predictor, FastRCNNOutputLayers):
        raise TypeError(
            f"{path} is a {kind.__name__}, not a FastRCNNOutputLayers, so its settings and its "
            "regression weights cannot be taken over."
        )
    if len(predictor.box2box_transform.weights) != 4:
        raise ValueError(f"{path} ({kind.__name__}) predicts rotated boxes; TDE has no such head.")
    classifier, num_outputs = predictor.cls_score, predictor.num_classes + 1
    if not isinstance(classifier, nn.Linear) or classifier.out_features != num_outputs:
        raise TypeError(
            f"{path}.cls_score is a {type(classifier).__name__}; expected a Linear with "
            f"{num_outputs} outputs, classes and background, whose weight can be taken over."
        )
    lost = _own_names(predictor)
    if lost:
        logger.warning(
            "%s is a %s, whose own %s will not be used any more.",
            path,
            kind.__name__,
            ", ".join(lost),
        )


def _own_names(predictor: FastRCNNOutputLayers) -> list[str]:
    """What a subclass has beyond upstream's predictor: its methods, layers and parameters."""
    kinds = type(predictor).__mro__
    kinds = kinds[: kinds.index(FastRCNNOutputLayers)]
    known = (LargeVocabularyInference, SigmoidFastRCNNOutputLayers)
    names = {name for kind in kinds if kind not in known for name in vars(kind)}
    names = {name for name in names if not name.startswith("__") and name != "from_config"}
    own = (*predictor._modules, *predictor._parameters, *predictor._buffers)
    return sorted(names | set(own) - {"cls_score", "bbox_pred", *_CHANCES})


def _tde_predictor_for(old: FastRCNNOutputLayers, tde_options: dict) -> TDEFastRCNNOutputLayers:
    kept = {name: getattr(old, name) for name in (*_KEPT, *_SIGMOID) if hasattr(old, name)}
    if kept.get("use_fed_loss"):
        weights = next(getattr(old, name) for name in _CHANCES if hasattr(old, name))
        kept["get_fed_loss_cls_weights"] = weights.clone
    fixed = {*_KEPT, *_SIGMOID, "input_shape", "cls_agnostic_bbox_reg", "get_fed_loss_cls_weights"}
    taken = sorted(set(tde_options) & fixed)
    if taken:
        raise ValueError(f"{', '.join(taken)}: taken over from the model, not an option of TDE.")
    if kept.get("use_sigmoid_ce"):
        tde_options = {"alpha": 0.0, **tde_options}
    new = TDEFastRCNNOutputLayers(
        ShapeSpec(channels=old.cls_score.in_features),
        # The layer this sizes is replaced below: build the smaller one.
        cls_agnostic_bbox_reg=True,
        **kept,
        **tde_options,
    )
    new.bbox_pred = old.bbox_pred
    new.cls_score.weight = old.cls_score.weight
    if new.cls_score.bias is not None:
        new.cls_score.bias = old.cls_score.bias
    for known in (new.feature_mean, new.statistics, new.box_loss):
        if known is not None:
            known.to(old.cls_score.weight.device)
    return new.train(old.training)
