"""From a config to the alpha that suits it, on images that are not those of the final figures."""

import hashlib
import json
import logging
import os
import time
from collections import defaultdict
from pathlib import Path
from typing import Dict, Iterable, List, Optional, Sequence, Set, Tuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.utils import comm

from .alpha import sweep_alpha
from .charts import plot_ap_over_alpha
from .engine import build_evaluator
from .trained import load_trained

__all__ = ["DEFAULT_ALPHAS", "calibration_images", "format_sweep", "hold_out", "run_sweep"]

logger = logging.getLogger(__name__)

DEFAULT_ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0)
_SHOWN = ("AP", "APr", "APc", "APf")


def calibration_images(
    classes_of: Dict[int, Iterable[int]], fraction: float, seed: int = 0
) -> Set[int]:
    """Chooses a part of the images such that no class is left out of it, or of the rest.

    An image's rank is a hash of its id and the seed, so the choice is the same before and after
    training. Beginning with the rarest class, each gets its best ranked images until it has
    ``fraction`` of its own, at least one; a class with a single image is left to training. So the
    rare classes, of which a plain draw of 5 % would hold hardly any, can be measured.

    Args:
        classes_of: image id to the classes that it shows.
        fraction: share of the images of every class, in (0, 1).
        seed: another seed, other images.

    Returns:
        set: image ids.

    Raises:
        ValueError: if ``fraction`` is out of its range, or nothing can be chosen.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction={fraction} must lie between 0 and 1.")
    images_of = defaultdict(set)
    for image, classes in classes_of.items():
        for one in set(classes):
            images_of[one].add(image)
    rank = {image: hashlib.sha256(f"{seed}/{image}".encode()).digest() for image in classes_of}
    chosen: Set[int] = set()
    for _, images in sorted(images_of.items(), key=lambda item: (len(item[1]), item[0])):
        wanted = min(max(1, round(fraction * len(images))), len(images) - 1)
        left = sorted(images - chosen, key=rank.__getitem__)
        chosen.update(left[: max(0, wanted - len(images & chosen))])
    if not chosen:
        raise ValueError("No class has two images, so none can be held out for calibration.")
    return chosen


def hold_out(
    dataset: str,
    fraction: float,
    folder: "str | os.PathLike",
    seed: int = 0,
    *,
    rest: bool = False,
) -> str:
    """Registers a part of a training set as a set to evaluate on.

    Args:
        dataset: registered set whose metadata has ``json_file``.
        fraction, seed: see :func:`calibration_images`.
        folder: gets ``calibration.json``, the annotations of the chosen images.
        rest: write ``training.json`` too, those of all other images, to train without the chosen.

    Returns:
        str: name of the new set; its frequency groups are those of the whole.

    Raises:
        ValueError: see :func:`calibration_images`; or the set has no annotation file.
    """
    source = MetadataCatalog.get(dataset)
    if source.get("json_file") is None:
        raise ValueError(f"Dataset {dataset!r} has no json_file in its metadata to evaluate with.")
    with open(source.json_file, encoding="utf-8") as file:
        annotations = json.load(file)
    classes_of = {image["id"]: [] for image in annotations["images"]}
    for annotation in annotations["annotations"]:
        classes_of[annotation["image_id"]].append(annotation["category_id"])
    chosen = calibration_images(classes_of, fraction, seed)
    path = os.path.join(folder, "calibration.json")
    if comm.is_main_process():
        os.makedirs(folder, exist_ok=True)
        _write_part(path, annotations, chosen)
        if rest:
            others = set(classes_of) - chosen
            _write_part(os.path.join(folder, "training.json"), annotations, others)
    comm.synchronize()
    name = f"{dataset}_calibration_{hashlib.sha256(path.encode('utf-8')).hexdigest()[:8]}"
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog.list():
            catalog.remove(name)
    DatasetCatalog.register(
        name, lambda: [r for r in DatasetCatalog.get(dataset) if r["image_id"] in chosen]
    )
    known = {k: v for k, v in source.as_dict().items() if k not in ("name", "json_file")}
    MetadataCatalog.get(name).set(json_file=path, **known)
    logger.info(
        "Calibration on %d of the %d images of %s: %g of the images of every class, at least one.",
        len(chosen),
        len(classes_of),
        dataset,
        fraction,
    )
    return name


def _write_part(path: str, annotations: dict, images: Set[int]) -> None:
    part = {
        **annotations,
        "images": [i for i in annotations["images"] if i["id"] in images],
        "annotations": [a for a in annotations["annotations"] if a["image_id"] in images],
    }
    _write(Path(path), json.dumps(part, separators=(",", ":")))


def run_sweep(
    cfg: CfgNode,
    alphas: Sequence[float] = DEFAULT_ALPHAS,
    *,
    metric: str = "segm/AP",
    calibrate: Optional[float] = None,
    seed: int = 0,
) -> dict:
    """Evaluates a trained model for several alphas and writes what was found.

    ``OUTPUT_DIR`` gets ``alpha.json`` and ``alpha.png``, and ``config_alpha.yaml``: the config
    with the best alpha, to be used as it is.

    Args:
        cfg: with TDE heads and ``MODEL.WEIGHTS``.
        alphas: values >= 0.
        metric: task and metric to maximise, such as "segm/APr"; of equals the smaller alpha.
        calibrate: share of the training images to measure on; None for the test set, whose figures
            are then those of the best of several models.
        seed: of the choice of these images.

    Returns:
        dict: what ``alpha.json`` holds: ``{"dataset", "metric", "alpha", "seconds", "results":
        {alpha: {task: {metric: percent}}}}``; empty but on rank 0.

    Raises:
        ValueError: if there are not exactly one training or test set, no result has the metric,
            or a value is out of its range.
    """
    alphas = sorted({float(alpha) for alpha in alphas})
    sets = cfg.DATASETS.TEST if calibrate is None else cfg.DATASETS.TRAIN
    if len(sets) != 1 or not alphas:
        raise ValueError(
            f"A sweep needs one dataset and at least one alpha, got {tuple(sets)} and {alphas}. "
            f"Set DATASETS.{'TEST' if calibrate is None else 'TRAIN'}."
        )
    (dataset,) = sets
    if calibrate is not None:
        dataset = hold_out(dataset, calibrate, cfg.OUTPUT_DIR, seed)
    else:
        logger.warning(
            "Alpha is chosen on %s. Do not report its figures there as those of a model that has "
            "not seen it: with --calibrate it is chosen on training images.",
            dataset,
        )
    model = load_trained(cfg)
    start = time.monotonic()
    found = sweep_alpha(
        model,
        build_detection_test_loader(cfg, dataset),
        alphas,
        lambda: build_evaluator(cfg, dataset, save=False),
    )
    if not comm.is_main_process():
        return {}
    best = _best(found, metric)
    if best == alphas[-1] and len(alphas) > 1:
        logger.warning("The best alpha, %g, is the largest that was tried: try larger ones.", best)
    report = {
        "dataset": dataset,
        "calibrate": calibrate,
        "metric": metric,
        "alpha": best,
        "seconds": round(time.monotonic() - start, 1),
        "results": {
            f"{alpha:g}": {
                task: {name: round(float(value), 4) for name, value in values.items()}
                for task, values in tasks.items()
            }
            for alpha, tasks in found.items()
        },
    }
    folder = Path(cfg.OUTPUT_DIR)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "alpha.json", json.dumps(report, indent=2) + "\n")
    task, name = metric.split("/")
    curve = {alpha: tasks[task] for alpha, tasks in found.items()}
    kind = {"segm": "Mask", "bbox": "Box"}.get(task, task)
    on = "training images" if calibrate is not None else dataset
    figure = plot_ap_over_alpha(curve, chosen=best, title=f"{kind} AP over alpha on {on} (%)")
    figure.savefig(folder / "alpha.png", dpi=150)
    chosen = cfg.clone()
    chosen.defrost()
    chosen.MODEL.TDE.ALPHA = best
    _write(folder / "config_alpha.yaml", chosen.dump())
    logger.info("alpha = %g has the best %s: see %s.", best, metric, folder / "config_alpha.yaml")
    return report


def _best(found: Dict[float, dict], metric: str) -> float:
    known = sorted(
        f"{task}/{name}" for task, values in next(iter(found.values())).items() for name in values
    )
    if metric not in known:
        raise ValueError(f"metric={metric!r} is not in the results: {', '.join(known)}.")
    task, name = metric.split("/")
    return max(sorted(found), key=lambda alpha: found[alpha][task][name])


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, "utf-8")
    partial.replace(path)


def format_sweep(report: dict) -> str:
    """The results of :func:`run_sweep` as one table in Markdown, the best alpha marked."""
    tasks = list(next(iter(report["results"].values())))
    columns: List[Tuple[str, str]] = [
        (task, name)
        for task in tasks
        for name in _SHOWN
        if name in next(iter(report["results"].values()))[task]
    ]
    heads = ["alpha ", *(f"{task} {name}" for task, name in columns)]
    rows = [heads, ["-" * (len(head) - 1) + ":" for head in heads]]
    for alpha, results in report["results"].items():
        mark = "*" if float(alpha) == report["alpha"] else " "
        cells = [f"{results[task][name]:.1f}" for task, name in columns]
        rows.append([f"{alpha}{mark}", *cells])
    return "\n".join(
        "| " + " | ".join(cell.rjust(len(head)) for cell, head in zip(row, heads)) + " |"
        for row in rows
    )
