"""Choosing strengths on images that the model was trained on: by the names of their objects.

AP on training images asks for too little where the model knows its rare objects. How likely the
right names are, every class counting alike, is another question; docs/trained_model.md has how much
of the gain of held-out images it keeps, and what other ways do. It is the balanced cross entropy
that logit adjustment (Menon et al., ICLR 2021, section 4) is derived from.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import inference_context
from detectron2.structures import Boxes, BoxMode, Instances, pairwise_iou
from detectron2.utils import comm
from torch import Tensor, nn

from ..modeling.intercept import intercepted
from ..posthoc import Settings
from .replay import box_branch_only
from .settings import settings, tde_predictors

__all__ = ["LIKELIHOOD", "KnownObjects", "log_shares", "with_likelihood"]

logger = logging.getLogger(__name__)

LIKELIHOOD = "likelihood"  # the name of the metric
_MATCH = 0.5  # IoU from which a region shows an object, as in training

Measure = Callable[[Sequence[Settings], Callable[[Settings, Any], None]], None]


def log_shares(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """How likely the right names of objects are, given that they are objects.

    Args:
        probabilities: (R, C + 1), the last column is none of the classes.
        labels: (R,) in [0, C).

    Returns:
        tuple: (C,) float64 sums of ``log (p_label / sum_i p_i)`` by class, and (C,) int64 counts.
    """
    classes = probabilities[:, :-1].double()
    right = classes.gather(1, labels[:, None])[:, 0] / classes.sum(1)
    logs = right.nan_to_num().clamp(min=torch.finfo(torch.float32).tiny).log()
    counts = labels.bincount(minlength=classes.shape[1])
    return logs.new_zeros(classes.shape[1]).index_add_(0, labels, logs), counts


class KnownObjects:
    """Regions of annotated objects, as the box predictors see them, from one pass over images."""

    def __init__(
        self, model: nn.Module, loader: Iterable[list[dict]], dataset: str, *, budget: int = 4 << 30
    ):
        """
        Args:
            model: a ``GeneralizedRCNN`` with TDE predictors; of a cascade all stages count, with
                the regions of the last.
            loader: batches of images in Detectron2's format.
            dataset: registered name of their set, which has the annotations.
            budget: most bytes to keep; images beyond are left out.
        """
        self._predictors = tde_predictors(model)
        self._labels: list[Tensor] = []
        self._stages: list[list[tuple[Tensor, Tensor]]] = [[] for _ in self._predictors]
        records = {record["image_id"]: record for record in DatasetCatalog.get(dataset)}
        calls: dict[int, tuple[Any, list[Instances]]] = {}

        def record(stage, predict_probs, predictions, proposals):
            calls[stage] = predictions, proposals
            return predict_probs(predictions, proposals)

        with contextlib.ExitStack() as stack:
            for stage, predictor in enumerate(self._predictors):
                step = functools.partial(record, stage)
                stack.enter_context(intercepted(predictor, "predict_probs", step))
            stack.enter_context(settings(self._predictors, posthoc=Settings()))
            for context in (box_branch_only(model), inference_context(model), torch.no_grad()):
                stack.enter_context(context)
            for inputs in loader:
                model(inputs)
                budget -= self._keep(calls, [records[one["image_id"]] for one in inputs])
                if budget < 0:
                    logger.warning("The memory is full: not all images count. See --memory.")
                    break

    def _keep(self, calls: Mapping[int, tuple[Any, list[Instances]]], records) -> int:
        num_classes = self._predictors[0].num_classes
        last = calls[len(calls) - 1][1]
        labels = torch.cat([_labels(*pair, num_classes) for pair in zip(last, records)])
        rows = labels < num_classes
        self._labels.append(labels[rows])
        for kept, (predictions, _) in zip(self._stages, (calls[i] for i in sorted(calls))):
            kept.append((predictions[0][rows], predictions[2][rows]))
        return sum(t.nbytes for kept in self._stages for t in kept[-1])

    def likelihood(self, strengths: Settings) -> float:
        """Percent: the mean over classes of the logarithms of :func:`log_shares`, as a share.

        NaN if no region shows an object. All processes must call it.
        """
        sums = torch.zeros(self._predictors[0].num_classes, dtype=torch.float64)
        counts = torch.zeros_like(sums)
        with settings(self._predictors, posthoc=strengths), torch.no_grad():
            for number, labels in enumerate(self._labels):
                stages = zip(self._predictors, (kept[number] for kept in self._stages))
                probs = [p.predict_probs((z, None, x), [z])[0] for p, (z, x) in stages]
                logs, seen = log_shares(torch.stack(probs).mean(0), labels)
                sums, counts = sums + logs.cpu(), counts + seen.cpu()
        parts = comm.all_gather((sums, counts)) if comm.get_world_size() > 1 else [(sums, counts)]
        sums, counts = (torch.stack(part).sum(0) for part in zip(*parts))
        return 100 * float((sums / counts)[counts > 0].mean().exp())


def _labels(proposals: Instances, record: Mapping[str, Any], num_classes: int) -> Tensor:
    """(R,) class of the object that each proposal shows best; ``num_classes`` where none is."""
    boxes = proposals.proposal_boxes
    objects = [one for one in record.get("annotations", ()) if not one.get("iscrowd", 0)]
    none = torch.full((len(boxes),), num_classes, device=boxes.device)
    if not objects or not len(boxes):
        return none
    corners = [BoxMode.convert(o["bbox"], o["bbox_mode"], BoxMode.XYXY_ABS) for o in objects]
    truth = Boxes(torch.tensor(corners, device=boxes.device))
    height, width = proposals.image_size
    truth.scale(width / record["width"], height / record["height"])
    iou, best = pairwise_iou(boxes, truth).max(1)
    classes = torch.tensor([o["category_id"] for o in objects], device=boxes.device)
    return torch.where(iou >= _MATCH, classes[best], none)


def with_likelihood(
    measure: Measure, model: nn.Module, recipe, dataset: str, budget: int
) -> Measure:
    """``measure`` whose results of boxes have :data:`LIKELIHOOD`, of :class:`KnownObjects`, too."""
    known: list[KnownObjects] = []

    def both(wanted: Sequence[Settings], add: Callable[[Settings, Any], None]) -> None:
        if not known:
            loader = recipe.test_loader(dataset)
            known.append(KnownObjects(model, loader, dataset, budget=budget))
        found = {one: known[0].likelihood(one) for one in wanted}

        def more(one: Settings, results: Any) -> None:
            add(one, {**results, "bbox": {**results["bbox"], LIKELIHOOD: found[one]}})

        measure(wanted, more)

    return both
