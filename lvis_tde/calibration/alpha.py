"""Choosing alpha: one pass over the images serves all values.

Alpha enters after the box head, so backbone, RPN and box head run once per image; for each alpha
only the probabilities, NMS and the evaluation are repeated. Masks and keypoints are predicted, and
masks pasted or encoded, once for every distinct (box, class) that any alpha keeps, or once for
every box where masks do not depend on the class.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import time
from collections.abc import Callable, Iterable, Sequence

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.modeling.roi_heads import ROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Instances
from torch import Tensor, nn

from ..evaluation import LVISEvaluator
from ..modeling.fast_rcnn import TDEFastRCNNOutputLayers
from ..modeling.mask_postprocess import postprocess_to_rle
from ..modeling.postprocess import large_vocabulary_inference

__all__ = [
    "box_branch_only",
    "detect_boxes",
    "predict_for_alphas",
    "sweep_alpha",
    "tde_predictors",
]

logger = logging.getLogger(__name__)


def tde_predictors(model: nn.Module) -> list[TDEFastRCNNOutputLayers]:
    """The TDE predictors of a model, one for every cascade stage.

    Raises:
        ValueError: if there is none.
    """
    found = [m for m in model.modules() if isinstance(m, TDEFastRCNNOutputLayers)]
    if not found:
        raise ValueError(
            "The model has no TDE predictor: set MODEL.ROI_HEADS.NAME to TDEROIHeads, "
            "TDECascadeROIHeads or TDERes5ROIHeads."
        )
    return found


@contextlib.contextmanager
def box_branch_only(model: nn.Module):
    """Leaves the mask and keypoint branches out while it is open."""
    heads = [m for m in model.modules() if isinstance(m, ROIHeads)]
    switched = [
        (module, name)
        for module in heads
        for name in ("mask_on", "keypoint_on")
        if getattr(module, name, False)
    ]
    try:
        for module, name in switched:
            setattr(module, name, False)
        yield
    finally:
        for module, name in switched:
            setattr(module, name, True)


@contextlib.contextmanager
def _recording(model: nn.Module):
    """Runs the box branch alone and yields the calls of ``predict_probs``: one a stage."""
    calls = []

    def record(predictor):
        def predict_probs(predictions, proposals):
            calls.append((predictor, predictions, proposals))
            # No detections for now: NMS comes later, for each alpha.
            return torch.zeros_like(predictions[0]).split([len(p) for p in proposals])

        return predict_probs

    predictors = tde_predictors(model)
    try:
        for predictor in predictors:
            predictor.predict_probs = record(predictor)
        with box_branch_only(model):
            yield calls
    finally:
        for predictor in predictors:
            del predictor.predict_probs


@contextlib.contextmanager
def _alpha(predictors, alpha: float):
    before = [p.alpha for p in predictors]
    try:
        for predictor in predictors:
            predictor.alpha = float(alpha)
        yield
    finally:
        for predictor, value in zip(predictors, before):
            predictor.alpha = value


def _box_results(calls) -> tuple[list[Instances], list[Tensor]]:
    """What the box branch gives for the predictors' current alpha; stages are averaged.

    Also the rows of the proposals that the detections are made of.
    """
    stages = [predictor.predict_probs(*arguments) for predictor, *arguments in calls]
    scores = [sum(image) / len(stages) for image in zip(*stages)]
    predictor, predictions, proposals = calls[-1]
    inference = large_vocabulary_inference if predictor.fast_nms else fast_rcnn_inference
    return inference(
        predictor.predict_boxes(predictions, proposals),
        scores,
        [p.image_size for p in proposals],
        predictor.test_score_thresh,
        predictor.test_nms_thresh,
        predictor.test_topk_per_image,
    )


def _box_branch(model: nn.Module, inputs: list[dict]):
    """Images, features, and the recorded calls of the predictors: all that comes before alpha."""
    images = model.preprocess_image(inputs)
    features = model.backbone(images.tensor)
    if model.proposal_generator is not None:
        proposals, _ = model.proposal_generator(images, features, None)
    else:
        proposals = [one["proposals"].to(model.device) for one in inputs]
    with _recording(model) as calls:
        model.roi_heads(images, features, proposals, None)
    return images, features, calls


def _check_alphas(alphas: Sequence[float]) -> None:
    if any(not alpha >= 0 for alpha in alphas):
        raise ValueError(f"alphas={list(alphas)} must not be negative.")


@torch.no_grad()
def detect_boxes(model: nn.Module, inputs: list[dict], alpha: float):
    """Detections without masks, and what they are made of.

    Args:
        model: a :class:`GeneralizedRCNN` in eval mode, with TDE predictors.
        inputs: N images in Detectron2's format.
        alpha: strength of the removal, >= 0.

    Returns:
        tuple: N ``Instances`` in the size of the network's input; for each image the rows of its
        regions that they come from; and for each stage the predictor, its predictions for all
        regions, and the regions, one ``Instances`` an image.

    Raises:
        ValueError: if the model has no TDE predictor or ``alpha`` is negative.
    """
    _check_alphas([alpha])
    predictors = tde_predictors(model)
    _, _, calls = _box_branch(model, inputs)
    with _alpha(predictors, alpha):
        instances, kept = _box_results(calls)
    return instances, kept, calls


def _one_mask_for_all_classes(model: nn.Module) -> bool:
    """Whether what is predicted for a box does not depend on its class."""
    heads = model.roi_heads
    if not getattr(heads, "mask_on", False):
        return True  # keypoints never do
    predictor = getattr(heads.mask_head, "predictor", None)
    return getattr(predictor, "out_channels", None) == 1


def _distinct(per_alpha: Sequence[Instances], by_class: bool):
    """The union of several results by (box, class) or by box, and where their rows lie in it."""
    rows = [r.pred_boxes.tensor.double() for r in per_alpha]
    if by_class:
        classes = [r.pred_classes[:, None].double() for r in per_alpha]
        rows = [torch.cat(pair, dim=1) for pair in zip(rows, classes)]
    union, where = torch.unique(torch.cat(rows), dim=0, return_inverse=True)
    first = torch.full((len(union),), len(where), device=where.device)
    order = torch.arange(len(where), device=where.device)
    first = first.scatter_reduce(0, where, order, "amin")
    return Instances.cat(per_alpha)[first], where.split([len(r) for r in per_alpha])


def _postprocessed(
    results: Sequence[Instances], union: Instances, where, size, rle: bool
) -> list[Instances]:
    """What upstream's postprocessing makes of each result, done once for the union of all.

    Args:
        results: one image's boxes, classes and scores for each alpha.
        union: every box, or (box, class), of them once, with masks and what else was predicted.
        where: for each result its rows in ``union``.
        size: (height, width) of the output image.
        rle: encode masks instead of pasting them.
    """
    union.row = torch.arange(len(union), device=union.pred_classes.device)
    done = (postprocess_to_rle if rle else detector_postprocess)(union, *size)
    # Boxes that are empty in the output image are gone.
    place = torch.full((len(union),), -1, device=done.row.device)
    place[done.row] = torch.arange(len(done), device=done.row.device)
    outputs = []
    for result, rows in zip(results, where):
        rows = place[rows]
        kept = rows >= 0
        rows = rows[kept]
        fields = {
            name: [value[i] for i in rows.tolist()] if isinstance(value, list) else value[rows]
            for name, value in done.get_fields().items()
            if name != "row"
        }
        fields.update(scores=result.scores[kept], pred_classes=result.pred_classes[kept])
        outputs.append(Instances(done.image_size, **fields))
    return outputs


@torch.no_grad()
def predict_for_alphas(
    model: nn.Module, inputs: list[dict], alphas: Sequence[float], *, rle: bool = False
) -> list[list[dict]]:
    """Predictions of a :class:`GeneralizedRCNN` for several alphas from one pass.

    Args:
        model: in eval mode, with a TDE predictor.
        inputs: N images in Detectron2's format.
        alphas: A values, each >= 0.
        rle: give masks as ``pred_masks_rle``, see :mod:`lvis_tde.modeling.mask_postprocess`, in
            place of ``pred_masks``.

    Returns:
        list[list[dict]]: for each alpha what ``model(inputs)`` would return with it.

    Raises:
        ValueError: if the model has no TDE predictor or an alpha is negative.
    """
    _check_alphas(alphas)
    predictors = tde_predictors(model)
    images, features, calls = _box_branch(model, inputs)
    per_alpha = []
    for alpha in alphas:
        with _alpha(predictors, alpha):
            per_alpha.append(_box_results(calls)[0])
    # From here on by image.
    per_image = list(zip(*per_alpha))
    by_class = not _one_mask_for_all_classes(model)
    distinct = [_distinct(results, by_class) for results in per_image]
    unions = model.roi_heads.forward_with_given_boxes(features, [union for union, _ in distinct])
    outputs: list[list[dict]] = [[] for _ in alphas]
    for results, union, (_, where), one, size in zip(
        per_image, unions, distinct, inputs, images.image_sizes
    ):
        size = one.get("height", size[0]), one.get("width", size[1])
        for output, instances in zip(outputs, _postprocessed(results, union, where, size, rle)):
            output.append({"instances": instances})
    return outputs


def sweep_alpha(
    model: nn.Module,
    loader: Iterable[list[dict]],
    alphas: Sequence[float],
    make_evaluator: Callable[[], DatasetEvaluator],
) -> dict[float, dict]:
    """Evaluates a model for several alphas in one pass over the images.

    Args:
        model: with a TDE predictor; its mode and alpha are restored at the end.
        loader: batches of images, such as Detectron2's test loader.
        alphas: values >= 0.
        make_evaluator: called once; every alpha gets a shallow copy, so that the annotations are
            in memory once.

    Returns:
        dict: alpha to what its evaluator returned.
    """
    evaluator = make_evaluator()
    rle = isinstance(evaluator, LVISEvaluator)
    evaluators = {alpha: copy.copy(evaluator) for alpha in alphas}
    for evaluator in evaluators.values():
        evaluator.reset()
    training, total = model.training, len(loader)
    start = logged = time.monotonic()
    model.eval()
    try:
        for i, inputs in enumerate(loader, 1):
            outputs = predict_for_alphas(model, inputs, list(evaluators), rle=rle)
            for evaluator, output in zip(evaluators.values(), outputs):
                evaluator.process(inputs, output)
            now = time.monotonic()
            if now - logged > 10:
                logged = now
                left = (now - start) / i * (total - i)
                logger.info(
                    "%d of %d batches for %d alphas, ETA %.0f s", i, total, len(alphas), left
                )
    finally:
        model.train(training)
    return {alpha: evaluator.evaluate() for alpha, evaluator in evaluators.items()}
