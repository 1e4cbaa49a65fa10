"""The evaluator that a data set asks for."""

import os
from collections.abc import Iterable

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator

from .classification_evaluator import ClassificationEvaluator
from .lvis_evaluator import LVISEvaluator

__all__ = ["build_evaluator", "prepare_reports"]


def build_evaluator(cfg: CfgNode, dataset_name: str, *, save: bool = True) -> DatasetEvaluator:
    """What a dataset's ``evaluator_type`` asks for: "lvis", "coco" or "classification".

    Args:
        cfg: for ``OUTPUT_DIR`` and the number of detections per image.
        dataset_name: registered dataset.
        save: write the predictions to a file, too.

    Raises:
        ValueError: for any other type.
    """
    folder = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name) if save else None
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind == "lvis":
        return LVISEvaluator(
            dataset_name, output_dir=folder, max_dets_per_image=cfg.TEST.DETECTIONS_PER_IMAGE
        )
    if kind == "coco":
        # The fast implementation is a compiled operator, which not every installation has.
        return COCOEvaluator(dataset_name, output_dir=folder, use_fast_impl=False)
    if kind == "classification":
        return ClassificationEvaluator(dataset_name, output_dir=folder)
    raise ValueError(
        f"Dataset {dataset_name!r} has evaluator_type {kind!r}; this tool evaluates 'lvis', "
        "'coco' and 'classification'. Set it in the dataset's metadata, or override "
        "Trainer.build_evaluator."
    )


def prepare_reports(evaluators: Iterable[DatasetEvaluator], bootstrap: int = -1) -> None:
    """Lets evaluators give intervals of what they will report.

    Args:
        evaluators: before ``evaluate``.
        bootstrap: resamples; 0 for none, -1 for as many as a report has time for.
    """
    for evaluator in evaluators:
        if isinstance(evaluator, (LVISEvaluator, ClassificationEvaluator)):
            evaluator.for_report(bootstrap)
