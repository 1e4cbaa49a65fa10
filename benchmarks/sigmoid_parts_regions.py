"""Regions of a trained model: any setting is evaluated on their boxes in about a second."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, pairwise_iou
from torch import Tensor

from lvis_tde.data.annotation_file import read_annotation_file
from lvis_tde.evaluation import GroundTruth, evaluate_lvis
from lvis_tde.evaluation.detections import Detections
from lvis_tde.modeling.postprocess import large_vocabulary_inference
from lvis_tde.posthoc import Settings, Statistics, compose

from .sigmoid_parts_runs import SPLITS, Run, stored_columns

__all__ = ["METRICS", "Regions", "gather"]

METRICS = ("AP", "APr", "APc", "APf")
PER_REGION = ("logits", "features", "boxes", "cosine")
FEW = 4  # pairs of region and class, for each detection that may stay
MATCH = 0.5  # IoU from which a region shows an object


@dataclass
class Regions:
    """Regions of all images of a split; R regions, C classes, D features, K heads.

    Attributes:
        run: the model.
        split: "calib" or "val".
        logits: (R, C + 1) factual.
        features: (R, D), classifier input.
        boxes: (R, 4), XYXY in pixels of the model's input.
        cosine, pull: TDE's terms, (R, K) and (C + 1, K).
        mean: (D,) feature mean.
        means, center: of each class's features, (C, D), and of the background's, (D,).
        similarity: of a region to the mean of its class, as a rule.
        weight, bias: of the classifier, (C + 1, D) and (C + 1,) or None.
        images: one dict each: image_id, number (of regions), size, height, width.
        nms, threshold, limit: of the model's post-processing.
    """

    run: Run
    split: str
    logits: Tensor
    features: Tensor
    boxes: Tensor
    cosine: Tensor
    pull: Tensor
    mean: Tensor
    means: Tensor
    center: Tensor
    similarity: float
    weight: Tensor
    bias: Tensor | None
    images: list[dict[str, Any]]
    nms: float
    threshold: float
    limit: int

    @property
    def num_classes(self) -> int:
        return self.logits.shape[1] - 1

    @cached_property
    def truth(self) -> GroundTruth:
        data = read_annotation_file(MetadataCatalog.get(self.run.names[self.split]).json_file)
        kept = {image["image_id"] for image in self.images}
        images = [image for image in data["images"] if image["id"] in kept]
        annotations = [a for a in data["annotations"] if a["image_id"] in kept]
        return GroundTruth.load({**data, "images": images, "annotations": annotations})

    @cached_property
    def category_ids(self) -> np.ndarray:
        """(C,) ids of the annotation file."""
        mapping = MetadataCatalog.get(self.run.names["train"]).thing_dataset_id_to_contiguous_id
        return np.array(sorted(mapping, key=mapping.get))

    @cached_property
    def counts(self) -> Tensor:
        """(C,) training images."""
        records = MetadataCatalog.get(self.run.names["train"]).class_image_count
        count = {record["id"]: float(record["image_count"]) for record in records}
        return torch.tensor([count[i] for i in self.category_ids.tolist()])

    @cached_property
    def groups(self) -> np.ndarray:
        """(C,) "r", "c" or "f"."""
        return np.array(MetadataCatalog.get(self.run.names["train"]).class_frequency)

    @cached_property
    def labels(self) -> Tensor:
        """(R,) class of the object that a region shows best, at an IoU of 0.5 or more; else C."""
        records = {r["image_id"]: r for r in DatasetCatalog.get(self.run.names[self.split])}
        labels = []
        for image, boxes in zip(self.images, self.boxes.split([i["number"] for i in self.images])):
            label = torch.full((len(boxes),), self.num_classes)
            objects = records[image["image_id"]]["annotations"]
            if objects and len(boxes):
                corners = [
                    BoxMode.convert(o["bbox"], o["bbox_mode"], BoxMode.XYXY_ABS) for o in objects
                ]
                found = Boxes(boxes.clone())
                found.scale(*_scale(image))
                iou, best = pairwise_iou(found, Boxes(torch.tensor(corners))).max(1)
                classes = torch.tensor([o["category_id"] for o in objects])[best]
                label = torch.where(iou >= MATCH, classes, label)
            labels.append(label)
        return torch.cat(labels)

    def subset(self, which: slice) -> Regions:
        """Of some of the images alone, annotations included."""
        numbers = torch.tensor([image["number"] for image in self.images])
        chosen = torch.zeros(len(numbers), dtype=torch.bool)
        chosen[which] = True
        rows = chosen.repeat_interleave(numbers)
        tensors = {name: getattr(self, name)[rows] for name in PER_REGION}
        return replace(self, images=self.images[which], **tensors)

    def probabilities(self, settings: Settings) -> Tensor:
        """(R, C + 1) of any settings."""
        bias = None if self.bias is None else self.bias[:-1]
        statistics = Statistics(
            counts=self.counts,
            bias=bias,
            class_means=self.means,
            center=self.center,
            similarity=self.similarity,
        )
        steps = compose(settings, statistics, sigmoid=self.run.sigmoid)
        terms = (self.cosine, self.pull) if steps.uses_tde else (None, None)
        return steps(self.logits, *terms, self.features if steps.uses_features else None)

    def detect(self, probabilities: Tensor, limit: int | None = None, threshold=None):
        """Detections of every image: ``Instances`` and rows of the regions they are from."""
        limit = self.limit if limit is None else limit
        threshold = self.threshold if threshold is None else threshold
        numbers, start = [image["number"] for image in self.images], 0
        split = zip(self.images, probabilities.split(numbers), self.boxes.split(numbers))
        for image, probs, boxes in split:
            instances, rows = self._detect_one(image, boxes, probs, limit, threshold)
            yield image, instances, rows + start
            start += len(boxes)

    def _detect_one(self, image, boxes, probs, limit, threshold):
        if limit > 0:
            # The best few pairs nearly always hold all that the limit leaves, at a third of the
            # time.
            number = min(FEW * limit + 1, probs[:, :-1].numel())
            few = float(probs[:, :-1].flatten().topk(number).values[-1])
            if few > threshold:
                found = self._infer(image, boxes, probs, limit, few)
                if len(found[0]) == limit:
                    return found
        return self._infer(image, boxes, probs, limit, threshold)

    def _infer(self, image, boxes, probs, limit, threshold):
        (instances,), (rows,) = large_vocabulary_inference(
            [boxes], [probs], [image["size"]], threshold, self.nms, limit
        )
        return instances, rows

    def ap(self, probabilities: Tensor, limit: int | None = None, threshold=None) -> dict:
        """Box AP, APr, APc and APf in percent; as the model has it, or with another limit."""
        limit = self.limit if limit is None else limit
        found = self.found(self.detect(probabilities, limit, threshold))
        metrics = evaluate_lvis(self.truth, found, "bbox", max_dets=limit).metrics
        return {name: metrics[name] for name in METRICS}

    def found(self, detected) -> Detections:
        """What :meth:`detect` gives, as columns."""
        parts = []
        for image, instances, _ in detected:
            instances.pred_boxes.scale(*_scale(image))
            corners = instances.pred_boxes.tensor.numpy()
            parts.append(
                {
                    "image_ids": np.full(len(instances), image["image_id"]),
                    "category_ids": self.category_ids[instances.pred_classes.numpy()],
                    "scores": instances.scores.numpy(),
                    "boxes": np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1),
                }
            )
        columns = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        number = len(columns["scores"])
        return Detections(
            **columns,
            has_box=np.ones(number, dtype=np.bool_),
            counts=np.zeros(0, dtype=np.uint8),
            lengths=np.zeros(number, dtype=np.int32),
            sizes=np.zeros((number, 2), dtype=np.int32),
        )


def _scale(image: Mapping[str, Any]) -> tuple[float, float]:
    height, width = image["size"]
    return image["width"] / width, image["height"] / height


def gather(
    run: Run, cache: Path, images: int, weights: str = "model_final.pth"
) -> dict[str, Regions]:
    """Regions of both held-out splits; see :func:`stored_columns`."""
    columns = stored_columns(run, cache, images, weights)
    return {split: Regions(run, split, **columns[split]) for split in SPLITS}
