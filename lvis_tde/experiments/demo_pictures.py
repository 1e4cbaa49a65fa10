"""The demo's charts of its figures and pictures of its detections."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_utils
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.structures import Boxes, BoxMode, Instances
from matplotlib.figure import Figure
from PIL import Image

from ..data.files import write_with
from ..data.frequency import LVIS_BOUNDS
from ..evaluation import Detections
from ..evaluation.report.classes import trend
from ..visualization.charts import RUN_NAMES, plot_ap_over_alpha, plot_group_ap
from ..visualization.class_charts import plot_ap_over_images
from ..visualization.class_sheet import draw_class_sheet
from ..visualization.detections import draw_comparison
from ..visualization.method_chart import plot_methods
from ..visualization.palette import GROUPS
from .opening import RULE, SCORE, Choice, Names, Scene, choose_scene

__all__ = ["draw_ap_over_images", "draw_charts", "draw_classes", "draw_images", "draw_methods"]

logger = logging.getLogger(__name__)


def draw_charts(results: dict, output: Path) -> None:
    """Charts of the figures in ``results.json``.

    Args:
        results: what it holds.
        output: folder.
    """
    _save(plot_group_ap(results["runs"]), output / "group_ap.png")
    draw_ap_over_images([results], output / "ap_over_images.png")
    draw_methods([results], output / "posthoc.png")
    for run, calibration in results["calibrations"].items():
        curve = {float(a): values["bbox"] for a, values in calibration.items()}
        # The run of the paper's method has the plain name.
        suffix = "" if run == "tde" else f"_{run.removesuffix('_tde')}"
        figure = plot_ap_over_alpha(
            curve,
            chosen=results["alphas"][run],
            title=f"{RUN_NAMES[run]}: box AP over its strength alpha, calibration split (%)",
        )
        _save(figure, output / f"ap_over_alpha{suffix}.png")


def _save(figure: Figure, file: Path) -> None:
    write_with(file, functools.partial(figure.savefig, dpi=150))


def draw_methods(seeds: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Box AP over APr of each method on each model, means over seeds.

    Args:
        seeds: what each seed's ``results.json`` holds.
        file: to write.
    """
    models = {}
    for part, rows in seeds[0]["posthoc"].items():
        found = [[row["val"] for row in seed["posthoc"][part]] for seed in seeds]
        means = np.array([[(v["APr"], v["AP"]) for v in some] for some in found]).mean(axis=0)
        name = RUN_NAMES.get(part, part).removesuffix(", TDE off")
        models[name] = [(row["method"], *pair) for row, pair in zip(rows, means.tolist())]
    of_seeds = f", mean of {len(seeds)} seeds" if len(seeds) > 1 else ""
    title = f"Each method on the trained models: box AP over APr on val (%){of_seeds}"
    _save(plot_methods(models, title=title), file)


def draw_ap_over_images(seeds: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Mask AP of the classes over their training images.

    Args:
        seeds: what each seed's ``results.json`` holds; the classes of all are taken together.
        file: to write.
    """
    lines = {}
    for run in seeds[0]["per_class"]:
        rows = [
            {"image_count": seed["image_count"][name], "AP": ap}
            for seed in seeds
            for name, ap in seed["per_class"][run].items()
            if ap is not None and seed["image_count"][name]
        ]
        lines[run] = trend(rows)
    _save(plot_ap_over_images(lines, bounds=LVIS_BOUNDS), file)


def draw_classes(dataset: str, output: Path, credit: str | None = None) -> None:
    """``classes.png``: an example of each class from the most frequent to the rarest.

    Args:
        dataset: registered name of the training set. The example of a class is its object at the
            upper quartile of size, which is seldom covered or cut off, cut out along its outline.
        output: folder.
        credit: whom the pictures are from.
    """
    metadata = MetadataCatalog.get(dataset)
    objects: dict[int, list] = {i: [] for i in range(len(metadata.thing_classes))}
    for record in DatasetCatalog.get(dataset):
        for i, annotation in enumerate(record["annotations"]):
            area = annotation["bbox"][2] * annotation["bbox"][3]
            objects[annotation["category_id"]].append((area, record["image_id"], i, record))
    crops = []
    for some in objects.values():
        some.sort(key=lambda item: item[:3])
        crops.append(
            _cut_out(*some[3 * len(some) // 4][2:]) if some else np.zeros((1, 1, 4), np.uint8)
        )
    sheet = draw_class_sheet(
        crops,
        metadata.thing_classes,
        [c["image_count"] for c in metadata.class_image_count],
        metadata.class_frequency,
        credit=credit,
    )
    # 256 colors make the file a third as large and look the same.
    picture = Image.fromarray(sheet).quantize(256)
    write_with(output / "classes.png", functools.partial(picture.save, optimize=True))


def _cut_out(index: int, record: Mapping[str, Any]) -> np.ndarray:
    """(H, W, 4) of one object of a record, transparent where the object is not."""
    image = read_image(record["file_name"], "RGB")
    annotation = record["annotations"][index]
    size = image.shape[:2]
    mask = mask_utils.decode(
        mask_utils.merge(mask_utils.frPyObjects(annotation["segmentation"], *size))
    )
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if not len(rows):
        return np.zeros((1, 1, 4), np.uint8)
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return np.dstack([image, 255 * mask])[window]


def draw_images(
    dataset: str,
    before: Detections,
    after: Detections,
    steps: str,
    count: int,
    output: Path,
    *,
    opening_size: int = 640,
) -> None:
    """Ground truth, a model as trained and with the steps: what they change, and what they find.

    ``opening.png`` has the image that :data:`~lvis_tde.experiments.opening.RULE` chooses; for want
    of a candidate, the same rule for common, then for frequent classes. The
    pictures ``val_*.png`` have those where the naming of most objects changes, to the better or
    to the worse.

    Args:
        dataset: registered name.
        before: its detections by the model as trained.
        after: those with steps after training.
        steps: what these are, in words.
        count: how many images beside the opening picture.
        output: folder.
        opening_size: pixels of the longer side of the image in the opening picture.
    """
    for old in [*output.glob("val_*.png"), *output.glob("opening.png")]:  # of another seed, say
        old.unlink()
    metadata = MetadataCatalog.get(dataset)
    records = {r["image_id"]: r for r in DatasetCatalog.get(dataset) if r["annotations"]}
    both = before, after
    rows = [_rows_by_image(side) for side in both]
    scenes = [
        Scene(
            image_id,
            *_truth(record["annotations"]),
            *(_names(s, r.get(image_id, []), metadata) for s, r in zip(both, rows)),
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
        sides = [_instances(*side, size) for side in zip((scene.before, scene.after), both)]
        picture = draw_comparison(
            read_image(record["file_name"], "RGB"),
            list(zip(("ground truth", "as trained", "with steps after training"), (truth, *sides))),
            class_names=metadata.thing_classes,
            class_frequency=metadata.class_frequency,
            truth=truth,
            score_threshold=SCORE,
            **options,
        )
        save = functools.partial(Image.fromarray(picture).save, optimize=True)
        write_with(output / file, save)

    for scene in most_changed[:count]:
        draw(scene, f"val_{scene.image_id}.png", panel_size=480, font_size=10)
    logger.info("The opening picture, steps: %s. %s", steps or "none", RULE)
    for group in GROUPS:
        classes = [i for i, f in enumerate(metadata.class_frequency) if f == group]
        choice = choose_scene(scenes, classes)
        if choice.scene is not None:
            break
        logger.warning("No object of a %s class is found with the steps alone.", GROUPS[group])
    subject = None if choice.scene is None else choice.scene.boxes[choice.subject]
    title, note = _words(choice, group, metadata, len(scenes))
    logger.info("%s. %s", title, note)
    draw(
        choice.scene or most_changed[0],
        "opening.png",
        panel_size=opening_size,
        font_size=opening_size / 36,
        subject=subject,
        title=title,
        footnote=note,
    )


def _words(choice: Choice, group: str, metadata, num_images: int) -> tuple[str, str]:
    """Title and footnote of the opening picture."""
    if choice.scene is None:
        title = "No object is found with the steps alone"
        return title, "This is the image where the steps change most names."
    category = int(choice.scene.classes[choice.subject])
    name = metadata.thing_classes[category].replace("_", " ")
    images = metadata.class_image_count[category]["image_count"]
    known = f"{images} training image{'s' * (images != 1)}"
    title = f"{GROUPS[group]} class “{name}” ({known}): missed as trained, found without retraining"
    note = (
        f"Of {choice.num_objects} objects of {GROUPS[group]} classes in {num_images} val images, "
        f"{choice.only_after} are found only with the steps and {choice.only_before} only without, "
        f"at a score of at least {SCORE:g}. Chosen by a rule, not by hand."
    )
    return title[0].upper() + title[1:], note


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
