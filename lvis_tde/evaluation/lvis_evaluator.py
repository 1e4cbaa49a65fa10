"""LVIS evaluation inside Detectron2, in place of ``detectron2.evaluation.LVISEvaluator``."""

import copy
import itertools
import json
import logging
import os
from collections import OrderedDict
from typing import Any, Dict, List, Optional, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import LVISEvaluator as _UpstreamEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table

from .api import evaluate_lvis
from .official import load_official

logger = logging.getLogger(__name__)

_REPORTED = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")


class LVISEvaluator(_UpstreamEvaluator):
    """Drop-in for Detectron2's ``LVISEvaluator``: same arguments, same results.

    Args:
        dataset_name: registered dataset; its metadata must have ``json_file``.
        tasks: out of ``bbox`` and ``segm``; by default what the predictions contain.
        distributed: gather the predictions of all ranks on rank 0 and evaluate there.
        output_dir: folder for ``lvis_instances_results.json``, or None.
        max_dets_per_image: most detections an image, by score; None is LVIS's 300.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Optional[Sequence[str]] = None,
        distributed: bool = True,
        output_dir: Optional[str] = None,
        *,
        max_dets_per_image: Optional[int] = None,
    ) -> None:
        # Not super().__init__: it imports lvis, which reconfigures the root logger.
        self._logger = logger
        self._tasks = None if isinstance(tasks, CfgNode) else tasks
        self._distributed = distributed
        self._output_dir = output_dir
        self._max_dets_per_image = max_dets_per_image
        self._cpu_device = torch.device("cpu")
        self._metadata = MetadataCatalog.get(dataset_name)
        self._json_file = PathManager.get_local_path(self._metadata.json_file)
        self._lvis_api = load_official().LVIS(self._json_file)
        # The files of test sets hold no annotations: those are evaluated on a server.
        self._do_evaluation = len(self._lvis_api.get_ann_ids()) > 0

    def _eval_predictions(self, predictions: List[Dict[str, Any]]) -> None:
        results = list(itertools.chain(*[x["instances"] for x in predictions]))
        tasks = self._tasks or self._tasks_from_predictions(results)
        mapping = self._metadata.get("thing_dataset_id_to_contiguous_id")
        to_dataset = {v: k for k, v in mapping.items()} if mapping else None
        for result in results:
            category = result["category_id"]
            result["category_id"] = to_dataset[category] if to_dataset else category + 1
        if self._output_dir:
            path = os.path.join(self._output_dir, "lvis_instances_results.json")
            logger.info("Saving results to %s", path)
            with PathManager.open(path, "w") as f:
                json.dump(results, f)
        if not self._do_evaluation:
            logger.info("Annotations are not available for evaluation.")
            return
        limit = 300 if self._max_dets_per_image is None else self._max_dets_per_image
        for task in sorted(tasks):
            counted = results
            if task == "segm":
                # With a box lvis takes the box area for small / medium / large, not the mask's.
                counted = [{k: v for k, v in r.items() if k != "bbox"} for r in results]
            result = evaluate_lvis(self._lvis_api.dataset, counted, task, max_dets=limit)
            self._results[task] = {name: result.metrics[name] for name in _REPORTED}
            logger.info("LVIS %s:\n%s", task, create_small_table(self._results[task]))

    def evaluate(self) -> Optional[Dict[str, Dict[str, float]]]:
        """Evaluate what was processed since ``reset``.

        Returns:
            ``{"bbox": {"AP": ...}, "segm": {...}}`` in percent on rank 0, None on the others.
        """
        predictions = self._predictions
        if self._distributed:
            comm.synchronize()
            predictions = list(itertools.chain(*comm.gather(predictions, dst=0)))
            if not comm.is_main_process():
                return None
        if len(predictions) == 0:
            logger.warning("Did not receive valid predictions.")
            return {}
        if self._output_dir:
            PathManager.mkdirs(self._output_dir)
        self._results = OrderedDict()
        if "proposals" in predictions[0]:
            self._eval_box_proposals(predictions)
        if "instances" in predictions[0]:
            self._eval_predictions(predictions)
        return copy.deepcopy(self._results)
