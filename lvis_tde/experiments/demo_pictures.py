"""The demo's charts of its figures and pictures of its detections."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_utils
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image

from ..evaluation import Detections
from ..visualization.charts import RUN_NAMES, plot_ap_over_alpha, plot_group_ap
from ..visualization.detections import draw_comparison
from .opening import RULE, SCORE, Choice, Names, Scene, choose_scene

__all__ = ["draw_charts", "draw_images"]

logger = logging.getLogger(__name__)


def draw_charts(results: dict, output: Path) -> None:
    plot_group_ap(results["runs"]).savefig(output / "group_ap.png", dpi=150)
    for run, file in (("tde", "ap_over_alpha.png"), ("softmax_tde", "ap_over_alpha_softmax.png")):
        curve = {float(a): values["segm"] for a, values in results["calibrations"][run].items()}
        plot_ap_over_alpha(
            curve,
            chosen=results["alphas"][run],
            title=f"{RUN_NAMES[run]}: mask AP on the calibration split over alpha (%)",
        ).savefig(output / file, dpi=150)


def draw_images(
    dataset: str, off: Detections, on: Detections, alpha: float, count: int, output: Path
) -> None:
    """Ground truth, TDE off and TDE on: the opening picture, and images that show what changes.

    ``opening.png`` has the image that :data:`~lvis_tde.experiments.opening.RULE` chooses. The
    pictures ``val_*.png`` have those where TDE changes the naming of most objects, to the better or
    to the worse.

    Args:
        dataset: registered name.
        off: its detections without TDE.
        on: those with it.
        alpha: its strength.
        count: how many images beside the opening picture.
        output: folder.
    """
    for old in [*output.glob("val_*.png"), *output.glob("opening.png")]:  # of another seed, say
        old.unlink()
    metadata = MetadataCatalog.get(dataset)
    records = {r["image_id"]: r for r in DatasetCatalog.get(dataset) if r["annotations"]}
    rows = [_rows_by_image(side) for side in (off, on)]
    scenes = [
        Scene(
            image_id,
            *_truth(record["annotations"]),
            *(_names(s, r.get(image_id, []), metadata) for s, r in zip((off, on), rows)),
        )
        for image_id, record in records.items()
    ]
    if not scenes:
        return
    most_changed = sorted(scenes, key=lambda scene: (-scene.num_changed(), scene.image_id))

    def draw(scene: Scene, file: str, **options) -> None:
        record = records[scene.image_id]
        size = record["height"], record["width"]
        truth = {"annotations": record["annotations"]}
        sides = [_instances(*side, size) for side in ((scene.off, off), (scene.on, on))]
        picture = draw_comparison(
            read_image(record["file_name"], "RGB"),
            list(zip(("ground truth", "TDE off", f"TDE on (alpha {alpha:g})"), (truth, *sides))),
            class_names=metadata.thing_classes,
            class_frequency=metadata.class_frequency,
            truth=truth,
            score_threshold=SCORE,
            **options,
        )
        Image.fromarray(picture).save(output / file, optimize=True)

    for scene in most_changed[:count]:
        draw(scene, f"val_{scene.image_id}.png", panel_size=480, font_size=10)
    rare = [i for i, group in enumerate(metadata.class_frequency) if group == "r"]
    choice = choose_scene(scenes, rare)
    title, note = _words(choice, metadata, len(scenes))
    logger.info("The opening picture. %s %s %s", RULE, title, note)
    scene = choice.scene
    subject = None if scene is None else scene.boxes[choice.subject]
    draw(
        scene or most_changed[0],
        "opening.png",
        panel_size=640,
        font_size=18,
        subject=subject,
        title=title,
        footnote=note,
    )


def _words(choice: Choice, metadata, num_images: int) -> tuple[str, str]:
    """Title and footnote of the opening picture."""
    note = (
        f"Of {choice.num_rare} objects of rare classes in {num_images} val images, "
        f"{choice.only_on} are found only with TDE and {choice.only_off} only without "
        f"(score at least {SCORE:g}); this one is chosen by a rule."
    )
    if choice.scene is None:
        return "No rare object is found with TDE alone", note.replace("this one", "this image")
    category = int(choice.scene.classes[choice.subject])
    name = metadata.thing_classes[category].replace("_", " ")
    images = metadata.class_image_count[category]["image_count"]
    plural = "image" if images == 1 else "images"
    return f"“{name}”, {images} training {plural}: missed without TDE, found with it", note


def _rows_by_image(detections: Detections) -> dict[Any, np.ndarray]:
    images, inverse = np.unique(detections.image_ids, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    ends = np.cumsum(np.bincount(inverse, minlength=len(images)))[:-1]
    return dict(zip(images.tolist(), np.split(order, ends)))


def _corners(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def _truth(annotations: list[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    boxes = [
        BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations
    ]
    return np.array(boxes, dtype=float), np.array([a["category_id"] for a in annotations])


def _names(detections: Detections, rows, metadata) -> Names:
    rows = np.asarray(rows, dtype=np.int64)
    contiguous = metadata.thing_dataset_id_to_contiguous_id
    classes = [contiguous[i] for i in detections.category_ids[rows].tolist()]
    found = Names.of(_corners(detections.boxes[rows]), np.array(classes), detections.scores[rows])
    return Names(found.boxes, found.classes, found.scores, rows[found.rows])


def _instances(names: Names, detections: Detections, size: tuple[int, int]) -> Instances:
    """What is shown of one side, with masks."""
    shown = names.shown()
    masks = [mask_utils.decode(rle) for rle in detections.segmentations(shown.rows)]
    return Instances(
        size,
        pred_boxes=Boxes(torch.as_tensor(shown.boxes, dtype=torch.float32).reshape(-1, 4)),
        pred_classes=torch.as_tensor(shown.classes, dtype=torch.int64),
        scores=torch.as_tensor(shown.scores),
        pred_masks=torch.as_tensor(np.array(masks, dtype=bool).reshape(-1, *size)),
    )
