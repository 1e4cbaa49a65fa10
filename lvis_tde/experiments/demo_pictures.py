"""The demo's charts of its figures and pictures of its detections."""

from __future__ import annotations

from pathlib import Path

import torch
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
)
from detectron2.data.detection_utils import read_image
from detectron2.structures import Boxes, BoxMode, pairwise_iou
from PIL import Image

from ..calibration.alpha import predict_for_alphas
from ..visualization.charts import RUN_NAMES, plot_ap_over_alpha, plot_group_ap
from ..visualization.detections import draw_comparison

__all__ = ["draw_charts", "draw_images"]


def draw_charts(results: dict, output: Path) -> None:
    plot_group_ap(results["runs"]).savefig(output / "group_ap.png", dpi=150)
    for run, file in (("tde", "ap_over_alpha.png"), ("softmax_tde", "ap_over_alpha_softmax.png")):
        curve = {float(a): values["segm"] for a, values in results["calibrations"][run].items()}
        plot_ap_over_alpha(
            curve,
            chosen=results["alphas"][run],
            title=f"{RUN_NAMES[run]}: mask AP on the calibration split over alpha (%)",
        ).savefig(output / file, dpi=150)


def _named(instances, truth: list) -> set:
    """The objects of ``truth`` whose best overlapping detection has their class."""
    boxes = torch.tensor([a["bbox"] for a in truth]).reshape(-1, 4)
    boxes = Boxes(BoxMode.convert(boxes, truth[0]["bbox_mode"], BoxMode.XYXY_ABS))
    overlap = pairwise_iou(boxes, instances.pred_boxes) >= 0.5
    best = torch.where(overlap, instances.scores, -1.0).argmax(1)
    return {
        i
        for i, (annotation, row) in enumerate(zip(truth, best.tolist()))
        if overlap[i, row] and instances.pred_classes[row] == annotation["category_id"]
    }


def draw_images(cfg, model, dataset: str, alpha: float, count: int, output: Path) -> None:
    """Ground truth, TDE off and TDE on for the val images that show most of what TDE does.

    Out of the first 100 these are the ones where it changes the naming of most objects, to the
    better or to the worse.
    """
    metadata = MetadataCatalog.get(dataset)
    records = [r for r in DatasetCatalog.get(dataset) if r["annotations"]][:100]
    loader = build_detection_test_loader(records, mapper=DatasetMapper(cfg, is_train=False))
    found = []
    for record, inputs in zip(records, loader):
        pair = predict_for_alphas(model, inputs, [0.0, alpha])
        off, on = (outputs[0]["instances"].to("cpu") for outputs in pair)
        changed = 0
        if len(off) and len(on):
            changed = len(_named(off, record["annotations"]) ^ _named(on, record["annotations"]))
        found.append((changed, record, off, on))
    found.sort(key=lambda item: -item[0])
    for old in output.glob("val_*.png"):  # of another seed, say
        old.unlink()
    for _, record, off, on in found[:count]:
        truth = {"annotations": record["annotations"]}
        picture = draw_comparison(
            read_image(record["file_name"], "RGB"),
            [("ground truth", truth), ("TDE off", off), (f"TDE, alpha {alpha:g}", on)],
            class_names=metadata.thing_classes,
            class_frequency=metadata.class_frequency,
            truth=truth,
        )
        Image.fromarray(picture).save(output / f"val_{record['image_id']}.png")
