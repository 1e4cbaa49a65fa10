"""A report on a long-tailed set: what is in it, beside LVIS v1, and what a detector confuses in it.

Every figure of a set comes from its annotation files, so the same command reports on LVIS itself:
``generated_set --set lvis_v1_train.json``. LVIS's own column has what its counts per class and its
number of images and boxes tell; what is not published stays empty.
"""

from __future__ import annotations

import argparse
import logging
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, build_detection_test_loader
from detectron2.evaluation import inference_on_dataset

from lvis_tde.calibration.checkpoint import load_trained
from lvis_tde.data.annotation_file import read_annotation_file
from lvis_tde.data.frequency import frequency_group
from lvis_tde.data.generation.glyph_table import lvis_image_counts
from lvis_tde.data.long_tailed import register_long_tailed
from lvis_tde.engine import YacsRecipe, load_config
from lvis_tde.evaluation.build import build_evaluator
from lvis_tde.visualization.palette import GROUPS

from .set_confusions import OUTCOMES, confusion_shares, confusions, most_confused
from .set_figures import confusion_figure, count_figure, example_picture
from .set_statistics import LVIS_V1, image_counts, percent, set_statistics

__all__ = ["add_arguments", "lvis_statistics", "markdown", "run"]

LVIS_CLASSES = 1203


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``benchmark.py generated_set``."""
    parser.add_argument(
        "--set",
        dest="sets",
        action="append",
        required=True,
        help="folder of a generated set, or an annotation file; may be repeated",
    )
    parser.add_argument("--splits", nargs="+", default=["train", "val"], help="of the folders")
    parser.add_argument("--output", default="output/generated_set", help="folder of the pictures")
    parser.add_argument("--examples", type=int, default=8, help="val images in the picture")
    parser.add_argument("--config-file", default="", help="of a model trained on the first set")
    parser.add_argument(
        "--min-score", type=float, default=0.05, help="of detections that count as one"
    )
    parser.add_argument("opts", nargs="*", help="KEY VALUE of the config, as MODEL.WEIGHTS FILE")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Statistics of all sets beside LVIS v1's, pictures, and the confusions of a model."""
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    files = _files(args)
    data = {name: read_annotation_file(path) for name, path in files.items()}
    columns = {name: set_statistics(content) for name, content in data.items()}
    columns["LVIS v1 train"] = lvis_statistics()
    counts = {name: sorted(image_counts(content).values(), reverse=True)
              for name, content in data.items() if not name.endswith("val")}  # fmt: skip
    result: dict[str, Any] = {
        "statistics": {
            title: {
                row: {column: tables[title].get(row) for column, tables in columns.items()}
                for row in rows
            }
            for title, rows in next(iter(columns.values())).items()
        },
    }
    count_figure(counts, _lvis_counts()).savefig(output / "counts.png", dpi=150)
    val = next((name for name in files if name.endswith("val")), None)
    if val is not None:
        register_long_tailed(str(files[val]), files[val], files[val].parents[1])
        picture = example_picture(str(files[val]), args.examples)
        picture.save(output / "examples.png", optimize=True)
    if args.config_file:
        if val is None:
            raise ValueError(f"--config-file needs a val split, got --set {args.sets}")
        ap, pairs = _detected(args, str(files[val]), data[val])
        shares = confusion_shares(data[val], pairs)
        confusion_figure(shares, args.min_score).savefig(output / "confusions.png", dpi=150)
        result["box AP"] = ap
        result["confusions"] = {"score from": args.min_score, **shares}
        result["most frequent mistakes"] = most_confused(data[val], pairs)
    return result


def _files(args: argparse.Namespace) -> dict[str, Path]:
    files = {}
    for path in map(Path, args.sets):
        if path.is_dir():
            for split in args.splits:
                files[f"{path.name} {split}"] = path / "annotations" / f"{split}.json"
        else:
            files[path.stem] = path
    return files


def _lvis_counts() -> list[int]:
    # With room for all of them, the counts are LVIS's own.
    return lvis_image_counts(LVIS_CLASSES, 10**9).tolist()


def lvis_statistics() -> dict[str, dict[str, float | None]]:
    """What is published of LVIS v1's training set, as :func:`set_statistics` has it."""
    counts = _lvis_counts()
    shares = {
        f"{name}, %": percent(sum(frequency_group(n) == group for n in counts), len(counts))
        for group, name in GROUPS.items()
    }
    images, boxes, pairs = LVIS_V1["images"], LVIS_V1["boxes"], sum(counts)
    return {
        "Classes": {
            "classes": len(counts),
            **shares,
            "images of the most frequent class": max(counts),
            "images of the median class": statistics.median(counts),
            "images of the rarest class": min(counts),
        },
        "Images": {
            "images": images,
            "boxes": boxes,
            "boxes per image, mean": boxes / images,
            "classes per image, mean": pairs / images,
            "boxes per class and image, mean": boxes / pairs,
        },
        "Boxes": {},
        "Together in an image": {},
    }


def _detected(args, dataset: str, truth: Mapping[str, Any]):
    """Box AP by group of the model that the arguments name, and what each object is taken for."""
    logging.getLogger("lvis_tde").setLevel(logging.WARNING)
    logging.getLogger("detectron2").setLevel(logging.WARNING)
    cfg = load_config(args.config_file, args.opts)
    if cfg.MODEL.ROI_HEADS.NUM_CLASSES != len(truth["categories"]):
        raise ValueError(
            f"MODEL.ROI_HEADS.NUM_CLASSES is {cfg.MODEL.ROI_HEADS.NUM_CLASSES}, but {dataset} has "
            f"{len(truth['categories'])} classes: name the config that was trained on it"
        )
    model = load_trained(YacsRecipe(cfg))
    evaluator = build_evaluator(cfg, dataset, save=False)
    # Without this the loader would keep only images that show an object.
    assert len(DatasetCatalog.get(dataset)) == len(truth["images"]), dataset
    loader = build_detection_test_loader(cfg, dataset)
    found = inference_on_dataset(model, loader, evaluator)["bbox"]
    columns = evaluator.detections()
    detections = [
        {"image_id": image, "category_id": category, "score": score, "bbox": box}
        for image, category, score, box in zip(
            columns.image_ids.tolist(), columns.category_ids.tolist(),
            columns.scores.tolist(), columns.boxes.tolist(),
        )
    ]  # fmt: skip
    ap = {name: found[name] for name in ("AP", "APr", "APc", "APf")}
    return ap, confusions(truth, detections, args.min_score)


def markdown(result: Mapping[str, Any]) -> str:
    """The result as Markdown tables; what is not known is an empty cell."""
    parts = []
    for title, rows in result["statistics"].items():
        columns = list(next(iter(rows.values())))
        parts.append(_table([title, *columns], [[row, *rows[row].values()] for row in rows]))
    if "confusions" in result:
        shares = result["confusions"]
        names = {"right": "right", **{g: f"another {n} class" for g, n in GROUPS.items()}}
        head = ["objects of", "number", *(names.get(o, o) for o in OUTCOMES)]
        parts.append(_table(["box AP, val", *result["box AP"]], [["", *result["box AP"].values()]]))
        parts.append(
            _table(
                [*head, "of another: same family", "by chance"],
                [[f"{name} classes", *shares[group].values()] for group, name in GROUPS.items()],
            )
        )
        parts.append(
            _table(["rare class", "taken for", "objects"], result["most frequent mistakes"])
        )
    return "\n\n".join(parts)


def _table(head, rows) -> str:
    lines = [head, ["---"] * len(head), *([_cell(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _cell(value) -> str:
    if value is None:
        return ""
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:.2f}" if abs(value) < 1 and value else f"{value:.1f}"
