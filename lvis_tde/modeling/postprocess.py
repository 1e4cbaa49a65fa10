"""Box post-processing for large vocabularies: Detectron2's detections, without its cost.

Shape shorthand in this module:

    R: proposals of one image, C: foreground classes, B: 1 or C boxes per proposal,
    N: candidates, the (proposal, class) pairs above the score threshold.

With C = 1203 and a threshold of 1e-4, N reaches hundreds of thousands and nearly all of them rank
far below the ``topk_per_image`` detections that are returned. Greedy non-maximum suppression (NMS)
decides each candidate from the higher-scored ones of its class alone, so NMS over the best M
candidates gives exactly the head of the full result. M starts small and grows until the head is
long enough.
"""

from __future__ import annotations

import logging

import torch
from detectron2.layers import batched_nms, nms
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers, fast_rcnn_inference
from detectron2.structures import Boxes, Instances

__all__ = [
    "LargeVocabularyInference",
    "LargeVocabularyFastRCNNOutputLayers",
    "large_vocabulary_inference",
]

logger = logging.getLogger(__name__)

# Below these counts upstream's `batched_nms` may shift every class by a multiple of the largest
# coordinate and run one NMS in float32. The shift rounds coordinates (by up to 1/16 pixel at 1203
# classes) and with them the decisions, so equal results need upstream's own call there. Above
# them, every supported torchvision (0.15 on) and Detectron2 runs NMS on unshifted boxes, class by
# class.
_MAX_SHIFTED_CPU = 1000
_MAX_SHIFTED_OTHER = 25_000

# Candidates in the first attempt, per requested detection, and the growth of each further one.
_CANDIDATES_PER_DETECTION = 4
_MIN_CANDIDATES = 256
_GROWTH = 4

# One joint NMS over all classes is quadratic in the candidates: worth it for this many only.
_MAX_JOINT = 3000
# Half width of the IoU band in which float32 rounding could decide, and the thinnest box (pixels)
# for which the band is wide enough.
_IOU_BAND = 1e-4
_MIN_SIDE = 1e-2


def large_vocabulary_inference(
    boxes: list[torch.Tensor],
    scores: list[torch.Tensor],
    image_shapes: list[tuple[int, int]],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[list[Instances], list[torch.Tensor]]:
    """Threshold, suppress and rank detections exactly as Detectron2's ``fast_rcnn_inference``.

    Boxes, scores, classes and kept indices are bit for bit those of upstream. Candidates of equal
    score keep the order of their position (proposal, then class); upstream promises no order there.

    One difference is deliberate: with non-finite rows in the input, upstream counts its kept
    indices after having dropped those rows, although it documents them as positions in the input.
    Here they are positions in the input, always, so that ``features[kept]`` is right.

    Args:
        boxes: Per image, float32 of shape (R, 4) (class-agnostic) or (R, C * 4), XYXY in pixels.
        scores: Per image, probabilities of shape (R, C + 1), background last.
        image_shapes: Per image, (height, width), to which the boxes are clipped.
        score_thresh: Detections need a score above this.
        nms_thresh: A box is suppressed by a better one of its class at an IoU above this.
        topk_per_image: Detections to return at most, in [0, inf); all if negative.

    Returns:
        One ``Instances`` per image with ``pred_boxes``, ``scores`` and ``pred_classes`` in falling
        order of score, and per image the int64 indices of their proposals, in [0, R).
    """
    if torch.jit.is_tracing():  # the number of attempts depends on the data
        return fast_rcnn_inference(
            boxes, scores, image_shapes, score_thresh, nms_thresh, topk_per_image
        )
    instances, kept = [], []
    for image_boxes, image_scores, image_shape in zip(boxes, scores, image_shapes):
        result, rows = _single_image(
            image_boxes, image_scores, image_shape, score_thresh, nms_thresh, topk_per_image
        )
        instances.append(result)
        kept.append(rows)
    return instances, kept


class LargeVocabularyInference:
    """Mixin for box predictors: ``inference`` by :func:`large_vocabulary_inference`.

    Place it before the predictor class. ``fast_nms`` False gives the predictor's own inference.
    """

    fast_nms: bool = True

    def inference(self: FastRCNNOutputLayers, predictions, proposals: list[Instances]):
        """Turn ``predictions`` into detections, as ``FastRCNNOutputLayers.inference`` does."""
        if not self.fast_nms:
            # It is the predictor's, which follows the mixin in the MRO.
            return super().inference(predictions, proposals)  # type: ignore[misc]
        return large_vocabulary_inference(
            self.predict_boxes(predictions, proposals),
            self.predict_probs(predictions, proposals),
            [p.image_size for p in proposals],
            self.test_score_thresh,
            self.test_nms_thresh,
            self.test_topk_per_image,
        )


class LargeVocabularyFastRCNNOutputLayers(LargeVocabularyInference, FastRCNNOutputLayers):
    """Detectron2's plain softmax predictor with fast, equal inference at many classes."""


def _single_image(boxes, scores, image_shape, score_thresh, nms_thresh, topk):
    """Detections of one image, see :func:`large_vocabulary_inference`."""
    boxes, scores, input_rows = _drop_non_finite(boxes, scores)
    scores = scores[:, :-1]
    boxes = boxes.reshape(len(boxes), boxes.shape[1] // 4, 4)
    above = scores > score_thresh
    num_candidates = int(above.sum())

    if num_candidates <= (_MAX_SHIFTED_CPU if scores.is_cpu else _MAX_SHIFTED_OTHER):
        candidates = _gather(boxes, scores, above, image_shape)
        keep = batched_nms(candidates[0], candidates[1], candidates[3], nms_thresh)
    else:
        size = max(_MIN_CANDIDATES, _CANDIDATES_PER_DETECTION * topk)
        if topk < 0:
            size = num_candidates
        while True:
            if size < num_candidates:
                # The cut takes all candidates of the M-th score, never some of them: which of
                # equal scores is suppressed must not depend on M.
                mask = scores >= scores.reshape(-1).topk(size, sorted=False).values.min()
            else:
                mask = above
            candidates = _gather(boxes, scores, mask, image_shape)
            keep = _nms_by_class(candidates[0], candidates[1], candidates[3], nms_thresh)
            if size >= num_candidates or len(keep) >= topk:
                break
            size *= _GROWTH

    if topk >= 0:
        keep = keep[:topk]
    kept_boxes, kept_scores, rows, classes = (x[keep] for x in candidates)
    result = Instances(image_shape)
    result.pred_boxes = Boxes(kept_boxes)
    result.scores = kept_scores
    result.pred_classes = classes
    return result, rows if input_rows is None else input_rows[rows]


def _drop_non_finite(boxes, scores):
    """Drop proposals with a NaN or infinity, with a warning; also give the rows that remain."""
    # A sum carries any NaN or infinity and needs no mask the size of the input.
    if all(torch.isfinite(x.sum(dtype=torch.float32)) for x in (boxes, scores)):
        return boxes, scores, None
    valid = torch.isfinite(boxes).all(dim=1) & torch.isfinite(scores).all(dim=1)
    if valid.all():  # the sum alone was too large
        return boxes, scores, None
    logger.warning(
        "%d of %d proposals have non-finite boxes or scores and are left out. "
        "Look for a diverged model or an overflow in half precision.",
        int((~valid).sum()),
        len(valid),
    )
    return boxes[valid], scores[valid], valid.nonzero()[:, 0]


def _gather(boxes, scores, mask, image_shape):
    """Clipped boxes (N, 4), scores (N,), proposals (N,) and classes (N,) of the set entries."""
    rows, classes = mask.nonzero(as_tuple=True)
    clipped = Boxes(boxes[rows, 0 if boxes.shape[1] == 1 else classes])
    clipped.clip(image_shape)
    return clipped.tensor, scores[rows, classes], rows, classes


def _nms_by_class(boxes, scores, classes, nms_thresh):
    """Upstream's class-by-class NMS; indices of the kept candidates in falling order of score."""
    boxes, scores = boxes.float(), scores.float()  # the CPU op takes one type, and no fp16
    if len(boxes) <= _MAX_JOINT and nms_thresh > _IOU_BAND:
        keep, is_open = _joint_nms(boxes, scores, classes, nms_thresh)
        todo = is_open.nonzero()[:, 0]
        keep[todo] = False
    else:
        keep = torch.zeros_like(scores, dtype=torch.bool)
        todo = torch.arange(len(boxes), device=boxes.device)

    # Sorted by class, each class is a slice; a mask over all candidates per class is what makes
    # upstream slow.
    todo = todo[classes[todo].argsort(stable=True)]
    todo_boxes, todo_scores = boxes[todo], scores[todo]
    start = 0
    for size in torch.unique_consecutive(classes[todo], return_counts=True)[1].tolist():
        end = start + size
        kept = nms(todo_boxes[start:end], todo_scores[start:end], nms_thresh)
        keep[todo[start:end][kept]] = True
        start = end

    kept = keep.nonzero()[:, 0]
    return kept[scores[kept].sort(descending=True, stable=True)[1]]


def _joint_nms(boxes, scores, classes, nms_thresh):
    """NMS of all classes in one call, and the candidates of classes for which it is not certain.

    Classes are set apart by a shift in float64. It gives IoUs that differ from the float32 ones of
    upstream by far less than the band, in this direction or that. Two runs take the threshold at
    either end of the band. Going down the ranking, a candidate kept by the lower threshold overlaps
    no better kept one, whatever the rounding, and one suppressed by the higher threshold overlaps
    a better kept one in any case; so where the two runs agree on a whole class, any decision inside
    the band gives the same result. The classes where they differ are left to the caller.

    Args:
        boxes: float32 (N, 4), clipped.
        scores: (N,).
        classes: int64 (N,).
        nms_thresh: Threshold above ``_IOU_BAND``.

    Returns:
        bool (N,), kept candidates, and bool (N,), those of the classes to be decided one by one.
    """
    exact = boxes.double()
    shifted = exact + (classes.double() * (exact.max() + 1))[:, None]
    lower, upper = torch.zeros((2, len(boxes)), dtype=torch.bool, device=boxes.device)
    for keep, thresh in ((lower, nms_thresh - _IOU_BAND), (upper, nms_thresh + _IOU_BAND)):
        keep[nms(shifted, scores.double(), thresh)] = True
    # Of a box that is thin, empty or inverted, the relative error has no such bound.
    thin = (boxes[:, 2:] - boxes[:, :2]).amin(dim=1) < _MIN_SIDE
    uncertain = (lower != upper) | thin
    return upper, torch.isin(classes, classes[uncertain]) if uncertain.any() else uncertain
