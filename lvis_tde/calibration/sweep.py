"""From a config to the alpha that suits it, on images that are not those of the final figures."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.utils import comm

from ..data.files import write_text
from ..evaluation.build import build_evaluator
from ..visualization.charts import plot_ap_over_alpha
from .alpha import sweep_alpha
from .checkpoint import load_trained
from .hold_out import hold_out

__all__ = ["DEFAULT_ALPHAS", "format_sweep", "run_sweep"]

logger = logging.getLogger(__name__)

DEFAULT_ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0)
_SHOWN = ("AP", "APr", "APc", "APf")


def run_sweep(
    cfg: CfgNode,
    alphas: Sequence[float] = DEFAULT_ALPHAS,
    *,
    metric: str = "segm/AP",
    calibrate: float | None = None,
    seed: int = 0,
) -> dict:
    """Evaluates a trained model for several alphas and writes what was found.

    ``OUTPUT_DIR`` gets ``alpha.json`` and ``alpha.png``, and ``config_alpha.yaml``: the config
    with the best alpha, to be used as it is.

    Args:
        cfg: with TDE heads and ``MODEL.WEIGHTS``.
        alphas: values >= 0.
        metric: task and metric to maximize, such as "segm/APr"; of equals the smaller alpha.
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
    write_text(folder / "alpha.json", json.dumps(report, indent=2) + "\n")
    task, name = metric.split("/")
    curve = {alpha: tasks[task] for alpha, tasks in found.items()}
    kind = {"segm": "Mask", "bbox": "Box"}.get(task, task)
    on = "training images" if calibrate is not None else dataset
    figure = plot_ap_over_alpha(curve, chosen=best, title=f"{kind} AP over alpha on {on} (%)")
    figure.savefig(folder / "alpha.png", dpi=150)
    chosen = cfg.clone()
    chosen.defrost()
    chosen.MODEL.TDE.ALPHA = best
    write_text(folder / "config_alpha.yaml", chosen.dump())
    logger.info("alpha = %g has the best %s: see %s.", best, metric, folder / "config_alpha.yaml")
    return report


def _best(found: dict[float, dict], metric: str) -> float:
    known = sorted(
        f"{task}/{name}" for task, values in next(iter(found.values())).items() for name in values
    )
    if metric not in known:
        raise ValueError(f"metric={metric!r} is not in the results: {', '.join(known)}.")
    task, name = metric.split("/")
    return max(sorted(found), key=lambda alpha: found[alpha][task][name])


def format_sweep(report: dict) -> str:
    """The results of :func:`run_sweep` as one table in Markdown, the best alpha marked."""
    tasks = list(next(iter(report["results"].values())))
    columns: list[tuple[str, str]] = [
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
