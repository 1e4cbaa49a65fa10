"""Bootstrap intervals of LVIS metrics: seconds, and memory above that of the evaluation itself."""

from __future__ import annotations

import argparse
import resource
import time
from typing import Any

import numpy as np

from lvis_tde.evaluation import Detections, GroundTruth, evaluate_lvis

from .evaluation_data import DETECTIONS, Scenes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--images", type=int, default=2000, help="images (default: 2000)")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure with boxes, since masks change what is matched and not what follows.

    Returns:
        Wall seconds and peak memory without and with resamples, and what the intervals are.
    """
    scenes = Scenes(args.seed)
    truth = GroundTruth.load(scenes.annotations(args.images))
    columns = [scenes.predictions(number)[:3] for number in range(args.images)]
    boxes, scores, classes = (np.concatenate(column) for column in zip(*columns))
    boxes[:, 2:] -= boxes[:, :2]
    number, none = len(boxes), np.zeros(0, dtype=np.uint8)
    detections = Detections(
        np.repeat(np.arange(1, args.images + 1), DETECTIONS),
        classes + 1,
        scores,
        boxes,
        np.ones(number, dtype=np.bool_),
        none,
        np.zeros(number, dtype=np.int32),
        np.zeros((number, 2), dtype=np.int32),
    )
    start = time.perf_counter()
    evaluate_lvis(truth, detections, "bbox")
    plain, before = time.perf_counter() - start, _peak()
    start = time.perf_counter()
    result = evaluate_lvis(truth, detections, "bbox", bootstrap=args.resamples, seed=args.seed)
    return {
        "images": args.images,
        "detections": len(detections),
        "resamples": args.resamples,
        "evaluation, s": plain,
        f"{args.resamples} resamples, s": time.perf_counter() - start - plain,
        "peak without, MiB": before,
        "peak with, MiB": _peak(),
        "intervals": {
            name: f"{result.metrics[name]:.2f} ({low:.2f} to {high:.2f})"
            for name, (low, high) in result.intervals.items()
        },
    }


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
