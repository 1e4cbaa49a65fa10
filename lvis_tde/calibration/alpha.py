"""Choosing alpha, or whole settings: one pass over the images serves all values.

Both enter after the box head, so backbone, RPN and box head run once per image; for each value
only the probabilities, NMS and the evaluation are repeated. Masks and keypoints are predicted, and
masks pasted or encoded, once for every distinct (box, class) that any value keeps, or for every box
where masks do not depend on the class.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Sequence
from typing import Any, TypeVar, Union

import torch
from detectron2.evaluation import DatasetEvaluator, inference_context
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances
from detectron2.utils import comm
from torch import nn

from ..evaluation import LVISEvaluator
from ..layers.functional import check_alpha
from ..modeling.distinct import distinct_rows
from ..modeling.mask_postprocess import postprocess_to_rle
from ..posthoc import Settings
from ..progress import Progress
from .replay import BoxBranch, KeptBranches
from .settings import choose, settings, tde_predictors

__all__ = ["predict_for_alphas", "sweep_alpha"]

logger = logging.getLogger(__name__)

# Of the whole of what TDE removes; of sigmoids (alpha, alpha_region); or of all post-hoc steps.
Strength = TypeVar("Strength", bound=Union[float, tuple[float, float], Settings])

# A mask head with a mask for each of 1203 classes takes 7 MB per box.
_BOXES_AT_ONCE = 100


def _options(strength: Strength) -> dict[str, Any]:
    """
    Raises:
        ValueError: if a number is negative or not finite.
    """
    if isinstance(strength, Settings):
        return {"posthoc": strength}
    if not isinstance(strength, tuple):
        return {"alpha": check_alpha(strength)}
    alpha, region = strength
    return {"alpha": check_alpha(alpha), "alpha_region": check_alpha(region)}


def _check(model: nn.Module, strengths: Sequence[Strength]) -> None:
    """Fails before the first image if the model cannot predict with one of the strengths."""
    tde_predictors(model)
    for strength in strengths:
        with settings(model, **_options(strength)):
            pass


def _one_mask_for_all_classes(model: GeneralizedRCNN) -> bool:
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
    first, where = distinct_rows(torch.cat(rows))
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
        # What the head says of a detection belongs to this result, except the box, which is scaled.
        own = result[kept].get_fields()
        fields.update({name: value for name, value in own.items() if name != "pred_boxes"})
        outputs.append(Instances(done.image_size, **fields))
    return outputs


def _postprocessed_together(results: Sequence[Instances], size) -> list[Instances]:
    """What upstream's postprocessing makes of each result, in one call for an image."""
    union, numbers = Instances.cat(results), [len(one) for one in results]
    number = torch.arange(len(numbers)).repeat_interleave(torch.tensor(numbers))
    union.setting = number.to(union.pred_classes.device)
    done = detector_postprocess(union, *size)
    ends = done.setting.bincount(minlength=len(numbers)).cumsum(0).tolist()
    done.remove("setting")
    return [done[start:end] for start, end in zip((0, *ends), ends)]


def _with_other_branches(heads, features, unions: list[Instances]) -> list[Instances]:
    """Masks and keypoints for the boxes of each image, never for many boxes at once.

    Raises:
        ValueError: if they change the detections themselves.
    """
    size = max(1, _BOXES_AT_ONCE // len(unions))
    longest = max(map(len, unions))
    parts = []
    for start in range(0, max(1, longest), size):
        part = [union[start : start + size] for union in unions]
        before = [one.scores.clone() for one in part]
        parts.append(heads.forward_with_given_boxes(features, part))
        for scores, one in zip(before, parts[-1]):
            if not torch.equal(scores, one.scores):
                raise ValueError(
                    f"{type(heads).__name__}.forward_with_given_boxes changes the scores, so "
                    "one pass cannot serve several alphas: evaluate one alpha at a time."
                )
    return [Instances.cat(image) for image in zip(*parts)]


def _detect(model: nn.Module, branch: BoxBranch, alphas: Sequence[Strength]):
    """For each alpha N images' boxes."""
    found = []
    with settings(model) as predictors, branch.opened() as detect:
        # Settings replace all of the ones before; an alpha leaves the others the model's own.
        leaving = choose if all(isinstance(one, Settings) for one in alphas) else settings
        for alpha in alphas:
            with leaving(predictors, **_options(alpha)) or contextlib.nullcontext():
                found.append(detect())
    return found


def predict_for_alphas(
    model: nn.Module, inputs: list[dict], alphas: Sequence[Strength], *, rle: bool = False
) -> list[list[dict]]:
    """Predictions of a :class:`GeneralizedRCNN` for several alphas from one pass.

    Args:
        model: in eval mode, with a TDE predictor.
        inputs: N images in Detectron2's format.
        alphas: A values, each finite and >= 0; of sigmoids also pairs ``(alpha, alpha_region)``; or
            :class:`~lvis_tde.posthoc.Settings`, which set all steps.
        rle: give masks as ``pred_masks_rle``, see :mod:`lvis_tde.modeling.mask_postprocess`, in
            place of ``pred_masks``.

    Returns:
        list[list[dict]]: for each alpha what ``model(inputs)`` would return with it.

    Raises:
        ValueError: if the model has no TDE predictor, an alpha is out of its range, settings need
            statistics of the classes that the model does not have, or the ROI heads run their
            networks on something that alpha changes.
    """
    _check(model, alphas)
    with torch.no_grad():
        return _predict(model, inputs, BoxBranch(model, inputs), alphas, rle)


def _predict(
    model: nn.Module,
    inputs: list[dict],
    branch: BoxBranch,
    alphas: Sequence[Strength],
    rle: bool,
    boxes_only: Container[Strength] = (),
) -> list[list[dict]]:
    """:func:`predict_for_alphas` without its checks, which take as long as a detection.

    Args:
        model, inputs, alphas, rle: see there.
        branch: of ``inputs``.
        boxes_only: the alphas whose results need no masks or keypoints.
    """
    per_alpha = _detect(model, branch, alphas)
    sizes = [
        (one.get("height", size[0]), one.get("width", size[1]))
        for one, size in zip(inputs, branch.images.image_sizes)
    ]
    plain = [alpha in boxes_only for alpha in alphas]
    outputs: list[list[dict]] = [[] for _ in alphas]
    for results, size in zip(zip(*itertools.compress(per_alpha, plain)), sizes):
        done = _postprocessed_together(results, size)
        for output, instances in zip(itertools.compress(outputs, plain), done):
            output.append({"instances": instances})
    full = [output for without, output in zip(plain, outputs) if not without]
    if not full:
        return outputs
    # From here on by image.
    per_image = list(zip(*(r for without, r in zip(plain, per_alpha) if not without)))
    by_class = not _one_mask_for_all_classes(model)
    distinct = [_distinct(results, by_class) for results in per_image]
    unions = _with_other_branches(
        model.roi_heads, branch.features, [union for union, _ in distinct]
    )
    for results, union, (_, where), size in zip(per_image, unions, distinct, sizes):
        for output, instances in zip(full, _postprocessed(results, union, where, size, rle)):
            output.append({"instances": instances})
    return outputs


def sweep_alpha(
    model: nn.Module,
    loader: Iterable[list[dict]] | KeptBranches,
    alphas: Sequence[Strength],
    make_evaluator: Callable[[], DatasetEvaluator],
    *,
    boxes_only: Collection[Strength] = (),
    on_result: Callable[[dict[Strength, dict]], None] | None = None,
    on_evaluated: Callable[[Strength, DatasetEvaluator], None] | None = None,
) -> dict[Strength, dict]:
    """Evaluates a model for several alphas in one pass over the images.

    Args:
        model: with a TDE predictor; its mode and alpha are restored at the end.
        loader: batches of images, such as Detectron2's test loader; or the kept branches of an
            earlier pass, for boxes alone.
        alphas: values, pairs or settings, see :func:`predict_for_alphas`.
        make_evaluator: called once for each alpha; once for all if it makes an
            :class:`~lvis_tde.evaluation.LVISEvaluator`, whose annotations are then in memory once.
        boxes_only: those of ``alphas`` that are evaluated without masks and keypoints, which take
            most of the time.
        on_result: called on rank 0 after each evaluation, with all results so far.
        on_evaluated: likewise, before, with the evaluator while it has its predictions.

    Returns:
        dict: alpha to what its evaluator returned.

    Raises:
        ValueError: see :func:`predict_for_alphas`.
    """
    _check(model, alphas)
    evaluators = dict(zip(alphas, _independent(make_evaluator, len(alphas))))
    rle = all(isinstance(evaluator, LVISEvaluator) for evaluator in evaluators.values())
    for evaluator in evaluators.values():
        evaluator.reset()
    progress = Progress("sweep", len(loader))  # type: ignore[arg-type]
    with inference_context(model), torch.no_grad():
        for i, (inputs, branch) in enumerate(_branches(model, loader), 1):
            outputs = _predict(model, inputs, branch, list(evaluators), rle, boxes_only)
            for evaluator, output in zip(evaluators.values(), outputs):
                evaluator.process(inputs, output)
            progress.step(i, note=f"{len(alphas)} settings")
    results = {}
    for alpha in list(evaluators):
        # Each rank 0 gathers gigabytes of detections: those of one alpha at a time.
        evaluator = evaluators.pop(alpha)
        results[alpha] = evaluator.evaluate()
        if on_evaluated is not None and comm.is_main_process():
            on_evaluated(alpha, evaluator)
        if isinstance(evaluator, LVISEvaluator):
            evaluator.reset()
        if on_result is not None and comm.is_main_process():
            on_result(results)
    return results


def _branches(model, loader) -> Iterator[tuple[list[dict], BoxBranch]]:
    if isinstance(loader, KeptBranches):
        return iter(loader)
    return ((inputs, BoxBranch(model, inputs)) for inputs in loader)


def _independent(
    make_evaluator: Callable[[], DatasetEvaluator], count: int
) -> list[DatasetEvaluator]:
    first = make_evaluator()
    if isinstance(first, LVISEvaluator):
        return [first, *(first.fresh_copy() for _ in range(count - 1))]
    return [first, *(make_evaluator() for _ in range(count - 1))]
