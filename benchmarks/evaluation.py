"""Detections to AP: Detectron2's evaluator with the official ``lvis`` against this project's.

Both get the same predictions in a fresh process each, so that the peak memory of one is not that of
the other: with masks of image size, or with the 28 x 28 probabilities of a mask head, which
upstream pastes into the image and this project turns into run lengths. Times are CPU seconds.
Memory is the peak above what the process held once the ground truth was loaded.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import io
import json
import logging
import pickle
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from .evaluation_data import DETECTIONS, HEIGHT, WIDTH, Scenes

_MIB = 1 << 20
_ENCODED_IMAGES = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--images", type=int, default=2000, help="images (default: 2000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--masks",
        choices=["pasted", "head"],
        default="pasted",
        help="pasted: of image size; head: as a mask head gives them, pasting measured, too",
    )
    parser.add_argument(
        "--ours-only",
        action="store_true",
        help="without upstream's path, which needs about 1 MiB an image",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure.

    Args:
        args: see :func:`add_arguments`.

    Returns:
        Figures of both, ratios upstream / ours, and the largest difference of a metric.
    """
    if args.images < 1:
        raise ValueError(f"--images must be at least 1, got {args.images}")
    out: dict[str, Any] = {"images": args.images, "detections": args.images * DETECTIONS}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "annotations.json"
        path.write_text(json.dumps(Scenes(args.seed).annotations(args.images)))
        for side in ("ours",) if args.ours_only else ("upstream", "ours"):
            out[side] = _in_new_process(side, path, args)
    if not args.ours_only:
        ours, upstream = out["ours"], out["upstream"]
        metrics = ours.pop("metrics"), upstream.pop("metrics")
        out["largest difference of a metric, in percent"] = max(
            abs(metrics[0][task][name] - metrics[1][task][name])
            for task in metrics[0]
            for name in metrics[0][task]
        )
        out["ratios"] = {
            key: upstream[key] / ours[key]
            for key in upstream
            if isinstance(upstream[key], float) and ours[key] > 0
        }
    else:
        out["ours"]["AP"] = {t: m["AP"] for t, m in out["ours"].pop("metrics").items()}
    return out


def _in_new_process(side: str, path: Path, args: argparse.Namespace) -> dict[str, Any]:
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        __name__,
        side,
        str(path),
        str(args.images),
        str(args.seed),
        args.masks,
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def _work(side: str, path: str, num_images: int, seed: int, kind: str) -> dict[str, Any]:
    """What the new process does."""
    import torch
    from detectron2.data import MetadataCatalog
    from detectron2.layers import paste_masks_in_image
    from detectron2.structures import Boxes, Instances

    from lvis_tde.modeling.mask_postprocess import paste_masks_to_rle

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    clocks: dict[str, float] = {}
    MetadataCatalog.get("benchmark").json_file = path
    scenes = Scenes(seed)
    out: dict[str, Any] = {}
    spent = {"paste": 0.0, "process": 0.0}
    if kind == "pasted":
        masks = np.zeros((DETECTIONS, HEIGHT, WIDTH), dtype=np.bool_)
        masks |= True
        masks &= False
        out = {"encode, ms an image": _encoding(side, scenes, masks)}
    evaluator = (_upstream if side == "upstream" else _ours)(clocks)

    def process(number: int) -> None:
        boxes, scores, classes, shapes = scenes.predictions(number)
        instances = Instances((HEIGHT, WIDTH))
        instances.pred_boxes = Boxes(torch.from_numpy(boxes))
        instances.scores, instances.pred_classes = map(torch.from_numpy, (scores, classes))
        if kind == "pasted":
            scenes.paint(boxes, shapes, masks)
            instances.pred_masks = torch.from_numpy(masks)
        else:
            small = torch.from_numpy(scenes.of_head(shapes))
            start = time.process_time()
            if side == "upstream":
                pasted = paste_masks_in_image(small, instances.pred_boxes, (HEIGHT, WIDTH))
                instances.pred_masks = pasted
            else:
                rles = paste_masks_to_rle(small, instances.pred_boxes, (HEIGHT, WIDTH))
                instances.pred_masks_rle = rles
            spent["paste"] += time.process_time() - start
        start = time.process_time()
        evaluator.process([{"image_id": number + 1}], [{"instances": instances}])
        spent["process"] += time.process_time() - start
        if kind == "pasted":
            _erase(boxes, masks)

    # What is loaded on first use is nobody's cost a detection.
    process(0)
    evaluator.reset()
    base, started = _resident_after_trim(), time.perf_counter()
    spent.update(paste=0.0, process=0.0)
    for number in range(num_images):
        process(number)
    out["process (encode and keep)"] = spent["process"]
    kept = _resident()
    start = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        metrics = evaluator.evaluate()
    evaluate = time.process_time() - start
    peak = _peak()
    wall = time.perf_counter() - started
    if side == "ours":
        for task, result in evaluator.lvis_results.items():
            for stage, seconds in result.timings.items():
                clocks[f"{task}: {stage}"] = seconds
    start = time.process_time()
    held = evaluator._predictions if side == "upstream" else evaluator.detections()
    sent = pickle.dumps(held, protocol=-1)
    pickle.loads(sent)
    out["gather (pickle and back)"] = time.process_time() - start
    out["gathered, MiB"] = len(sent) / _MIB
    for task in ("bbox", "segm"):
        stages = {k: v for k, v in clocks.items() if k.startswith(task)}
        out[task] = sum(stages.values())
        out[f"{task} by stage"] = {k.split(": ")[1]: v for k, v in stages.items()}
    out["evaluate, both"] = evaluate
    out["process + evaluate"] = out["process (encode and keep)"] + evaluate
    if kind == "head":
        out["paste"] = spent["paste"]
        out["paste + process + evaluate"] = spent["paste"] + spent["process"] + evaluate
    out["kept, bytes a detection"] = (kept - base) / num_images / DETECTIONS
    out["peak above ground truth, MiB"] = (peak - base) / _MIB
    out["peak of the process, MiB"] = peak / _MIB
    out["wall, with making the predictions, s"] = wall
    out["metrics"] = metrics
    return out


def _ours(clocks: dict[str, float]) -> Any:
    from lvis_tde.evaluation import LVISEvaluator

    return LVISEvaluator("benchmark", distributed=False)


def _upstream(clocks: dict[str, float]) -> Any:
    # lvis 0.5.3 does not run on NumPy >= 1.24 without it; this process exists for upstream alone.
    np.float = float
    import lvis
    from detectron2.evaluation import lvis_evaluation

    task = [""]
    whole = lvis_evaluation._evaluate_predictions_on_lvis

    def timed(function, stage):
        def wrapper(*args, **kwargs):
            start = time.process_time()
            value = function(*args, **kwargs)
            key = f"{task[0]}: {stage}"
            clocks[key] = clocks.get(key, 0) + time.process_time() - start
            return value

        return wrapper

    def by_task(lvis_gt, results, iou_type, **kwargs):
        task[0], start = iou_type, time.process_time()
        value = whole(lvis_gt, results, iou_type, **kwargs)
        parts = ("match", "accumulate")
        spent = sum(clocks[f"{iou_type}: {part}"] for part in parts)
        clocks[f"{iou_type}: prepare"] = time.process_time() - start - spent
        return value

    lvis_evaluation._evaluate_predictions_on_lvis = by_task
    lvis.LVISEval.evaluate = timed(lvis.LVISEval.evaluate, "match")
    lvis.LVISEval.accumulate = timed(lvis.LVISEval.accumulate, "accumulate")
    evaluator = lvis_evaluation.LVISEvaluator("benchmark", distributed=False)
    evaluator.reset()
    return evaluator


def _encoding(side: str, scenes: Scenes, masks: np.ndarray) -> float:
    import pycocotools.mask as mask_utils

    from lvis_tde.evaluation.rle import encode_masks

    spent = 0.0
    for number in range(_ENCODED_IMAGES):
        boxes, _, _, shapes = scenes.predictions(number)
        scenes.paint(boxes, shapes, masks)
        start = time.process_time()
        if side == "ours":
            encode_masks(masks, boxes)
        else:
            for mask in masks:
                mask_utils.encode(np.array(mask[:, :, None], order="F", dtype="uint8"))
        spent += time.process_time() - start
        _erase(boxes, masks)
    return spent / _ENCODED_IMAGES * 1000


def _erase(boxes: np.ndarray, masks: np.ndarray) -> None:
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.tolist()):
        mask[int(y0) : int(y1) + 1, int(x0) : int(x1) + 1] = False


def _status(key: str) -> int:
    return int(re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text()).group(1)) << 10


def _resident() -> int:
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _resident_after_trim() -> int:
    """Resident memory once freed memory is returned, from where on the peak is measured."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _resident()


if __name__ == "__main__":  # how run() starts it
    real = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        figures = _work(*sys.argv[1:3], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
    json.dump(figures, real)
