"""LVIS evaluation inside Detectron2, in place of ``detectron2.evaluation.LVISEvaluator``."""

from __future__ import annotations

import copy
import functools
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import LVISEvaluator as _UpstreamEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table

from ..data.files import atomic_path
from .api import check_max_dets, check_options, check_tasks, evaluate_lvis
from .bootstrap import report_resamples
from .columns import columns
from .comparison import compare_resampled
from .detections import Detections, id_column
from .errors import complain
from .ground_truth import GroundTruth
from .official import load_official
from .parts import Parts
from .result import LVISComparison, LVISResult, percent

logger = logging.getLogger(__name__)

REPORTED = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")


class LVISEvaluator(_UpstreamEvaluator):
    """Drop-in for Detectron2's ``LVISEvaluator``: same arguments, same results, a fraction of the
    cost.

    Predictions are kept as columns and run lengths, under 250 bytes each, and gathered over ranks
    as such. Unlike upstream's this writes no ``instances_predictions.pth``: the result file has it
    all.

    Args:
        dataset_name: registered dataset; its metadata must have ``json_file``.
        tasks: out of ``bbox``, ``segm`` and ``boundary``; by default ``bbox``, and ``segm`` if
            there are masks.
        distributed: gather the predictions of all ranks on rank 0 and evaluate there.
        output_dir: folder for ``lvis_instances_results.json``, or None.
        max_dets_per_image: most detections per image, by score; None is LVIS's 300, -1 no limit.
        per_category: most detections per category over the data set. AP_fixed is 10000, with
            ``max_dets_per_image=-1``.
        engine: ``native``, or ``lvis`` for the official package.
        bootstrap: resamples of the images for 95 % intervals, which each ``evaluate`` then gives;
            0 for none.

    Attributes:
        bootstrap: may be changed.
        lvis_results: after ``evaluate`` on rank 0, each task's :class:`LVISResult`.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
        per_category: int | None = None,
        engine: str = "native",
        bootstrap: int = 0,
    ) -> None:
        # Not super().__init__: it imports lvis, which reconfigures the root logger.
        self._logger = logger
        self._tasks = None if isinstance(tasks, CfgNode) else tasks
        check_tasks(self._tasks, engine)
        check_options(engine, bootstrap, per_category)
        self._distributed = distributed
        self._output_dir = output_dir
        self._limits: dict[str, Any] = {
            "max_dets": 300 if max_dets_per_image is None else max_dets_per_image,
            "per_category": per_category,
        }
        check_max_dets(self._limits["max_dets"])
        self._engine, self.bootstrap = engine, bootstrap
        self._cpu_device = torch.device("cpu")
        self._metadata = MetadataCatalog.get(dataset_name)
        self._json_file = PathManager.get_local_path(self._metadata.json_file)
        with open(self._json_file, encoding="utf-8-sig") as f:
            annotations = json.load(f)
        # The files of test sets hold no annotations: those are evaluated on a server.
        self._do_evaluation = len(annotations.get("annotations", ())) > 0
        self._truth = GroundTruth.load(annotations) if self._do_evaluation else None
        self.reset()

    @functools.cached_property
    def _lvis_api(self) -> Any:
        # Upstream's proposal recall asks for it; nothing else does.
        return load_official().LVIS(self._json_file)

    def fresh_copy(self, **changed: Any) -> LVISEvaluator:
        """An evaluator with the same options and no predictions, which shares the annotations only.

        For evaluating several settings in one pass: the annotations are in memory once, and what
        one evaluator processes no other one sees, whatever a subclass keeps or its ``reset`` does.

        Args:
            **changed: ``output_dir``, if the copy has another.

        Returns:
            As if made and reset anew; independent of this one, which stays as it is.
        """
        shared = ("_truth", "_metadata", "_lvis_api", "_parts", "_gathered", "_proposals")
        memo = {id(vars(self)[name]): vars(self)[name] for name in shared if name in vars(self)}
        other = copy.deepcopy(self, memo)
        other._output_dir = changed.pop("output_dir", self._output_dir)
        assert not changed, changed
        # Replaces the predictions, which are the only shared columns that ever change.
        other.reset()
        return other

    def reset(self) -> None:
        """Forget all predictions, and the results of them."""
        self.lvis_results: dict[str, LVISResult] = {}
        self._parts = Parts()
        self._gathered = Detections.concatenate([])
        self._proposals: list[dict[str, Any]] = []
        self._seen = {"images": 0, "instances": 0, "masks": 0}

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Take the predictions of some images.

        Args:
            inputs: dicts with ``image_id``.
            outputs: dicts with ``proposals``, or with ``instances``: ``pred_boxes``, ``scores``,
                ``pred_classes`` and perhaps ``pred_masks``, bool (N, H, W), or ``pred_masks_rle``,
                N compressed RLE dicts, for masks that were never pasted into an image.
        """
        for one_input, output in zip(inputs, outputs):
            self._seen["images"] += 1
            if "instances" in output:
                instances = output["instances"].to(self._cpu_device)
                self._seen["instances"] += 1
                self._seen["masks"] += instances.has("pred_masks") or instances.has(
                    "pred_masks_rle"
                )
                self._parts.add(columns(instances, one_input["image_id"]))
            if "proposals" in output:
                proposals = output["proposals"].to(self._cpu_device)
                self._proposals.append({"image_id": one_input["image_id"], "proposals": proposals})

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Evaluate what was processed since ``reset``.

        Returns:
            ``{"bbox": {"AP": ...}, "segm": {...}}`` in percent on rank 0, None on the others.

        Raises:
            ValueError: the predictions do not belong to the annotations.
        """
        detections = self._parts.together()
        proposals, seen = self._proposals, self._seen
        if self._distributed:
            comm.synchronize()
            ranks = comm.gather((detections, proposals, seen), dst=0)
            if not comm.is_main_process():
                return None
            detections = Detections.concatenate([rank[0] for rank in ranks])
            proposals = [proposal for rank in ranks for proposal in rank[1]]
            seen = {key: sum(rank[2][key] for rank in ranks) for key in seen}
        self._gathered = detections
        if not seen["images"]:
            logger.warning("Did not receive valid predictions.")
            return {}
        if self._output_dir:
            PathManager.mkdirs(self._output_dir)
        self._results: dict[str, Any] = OrderedDict()
        if proposals:
            self._eval_box_proposals(proposals)
        if seen["instances"]:
            self._eval_instances(with_masks=seen["masks"] > 0)
        return copy.deepcopy(self._results)

    def _eval_instances(self, with_masks: bool) -> None:
        detections = self.detections()
        if self._output_dir:
            path = os.path.join(self._output_dir, "lvis_instances_results.json")
            logger.info("Saving results to %s", path)
            if "://" in path:  # a storage that PathManager knows
                with PathManager.open(path, "w") as f:
                    detections.write_json(f)
            else:
                with atomic_path(path) as partial, open(partial, "w", encoding="utf-8") as f:
                    detections.write_json(f)
        if self._truth is None:
            logger.info("Annotations are not available for evaluation.")
            return
        tasks = self._tasks or (("bbox", "segm") if with_masks else ("bbox",))
        truth = self._truth if self._engine == "native" else self._json_file
        self.lvis_results = {}
        for task in sorted(tasks):
            options = {**self._limits, "engine": self._engine, "bootstrap": self.bootstrap}
            result = evaluate_lvis(truth, detections, task, **options)
            self.lvis_results[task] = result
            shown = self._results[task] = {name: result.metrics[name] for name in REPORTED}
            logger.info(
                "LVIS %s:\n%s",
                task,
                create_small_table({k: percent(v, 3) for k, v in shown.items()}),
            )

    def for_report(self, resamples: int = -1) -> None:
        """Lets ``evaluate`` give intervals for the report, unless it does so anyway.

        Args:
            resamples: of the images; -1 for as many as a report has time for.
        """
        if not self.bootstrap and self._truth is not None and self._engine == "native":
            number = report_resamples(len(self._truth.image_ids))
            self.bootstrap = number if resamples < 0 else resamples

    def write_report(
        self,
        output_dir: str,
        model: str = "model",
        beside: Mapping[str, LVISEvaluator] | None = None,
    ) -> list[Path]:
        """Write a page and pictures about each task that ``evaluate`` evaluated, on rank 0.

        Args:
            output_dir: folder; each task has one of its own in it.
            model: what is evaluated, for titles.
            beside: runs of the model on the same data set with other settings, evaluated too, by
                name, in the order of the report; this one among them.

        Returns:
            The pages.
        """
        # Matplotlib is needed here only.
        from .confusion import rare_confusions
        from .report.writer import write_report

        if self._truth is None or not self.lvis_results:
            return []
        limit, runs = self._limits["max_dets"], beside or {model: self}
        first, *_, last = [*runs.values()] * 2
        confusions = {
            name: rare_confusions(self._truth, run.detections(), limit)
            for name, run in runs.items()
        }
        return [
            write_report(
                os.path.join(output_dir, task),
                {name: run.lvis_results[task] for name, run in runs.items()},
                confusions,
                dataset=self._metadata.name,
                model=model if beside else "",
                comparison=_compared(first.lvis_results[task], last.lvis_results[task]),
            )
            for task in self.lvis_results
        ]

    def detections(self) -> Detections:
        """What ``evaluate`` evaluated, with the category ids of the annotation file.

        Returns:
            Columns for :func:`lvis_tde.evaluation.evaluate_lvis`.

        Raises:
            ValueError: a predicted class has no category.
        """
        detections = copy.copy(self._gathered)
        detections.mask_area = True
        classes = detections.category_ids
        # A data set with categories other than LVIS's brings its own numbering.
        mapping = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if mapping is None:
            detections.category_ids = classes + 1
            return detections
        to_dataset = {v: k for k, v in mapping.items()}
        unique, inverse = np.unique(classes, return_inverse=True)
        complain(
            [c for c in unique.tolist() if c not in to_dataset],
            "predicted classes without a category",
            "they are not in the metadata's thing_dataset_id_to_contiguous_id",
        )
        ids = [to_dataset[c] for c in unique.tolist()]
        detections.category_ids = id_column(ids)[inverse]
        return detections


def _compared(before: LVISResult, after: LVISResult) -> LVISComparison | None:
    known = before is not after and before.resamples is not None and after.resamples is not None
    return compare_resampled(before, after) if known else None
