#!/usr/bin/env python
"""Evaluate a result file by the rules of LVIS, or a classifier's by top-1 accuracy.

    python tools/evaluate.py lvis_v1_val.json lvis_instances_results.json --iou-type bbox segm
    python tools/evaluate.py lvis_v1_val.json results.json --fixed   # AP_fixed, Dave et al. 2021
    python tools/evaluate.py predictions.npz [OTHER.npz]   # classification: second minus first

The numbers are those of the official lvis package, which --engine lvis runs itself. Annotations in
COCO's format count as exhaustive; --train-annotations makes their groups.
"""

import json
import time

from lvis_tde import cli
from lvis_tde.arguments import Parser, add_group_arguments
from lvis_tde.data.files import write_text
from lvis_tde.evaluation import (
    Detections,
    GroundTruth,
    Predictions,
    compare_top1,
    evaluate_lvis,
)
from lvis_tde.evaluation.api import check_tasks
from lvis_tde.evaluation.truth_file import load_truth


def main(argv=None):
    """Parse the command line, evaluate, print."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "annotations",
        help="file in LVIS or COCO format, or a registered set; or predictions.npz of a classifier",
    )
    parser.add_argument(
        "results",
        nargs="?",
        help="result file: JSON list of detections; or predictions.npz of another classifier",
    )
    add_group_arguments(parser)
    parser.add_argument(
        "--iou-type",
        nargs="+",
        choices=["bbox", "segm", "boundary"],
        help="default: bbox, and segm if the results have masks",
    )
    parser.add_argument("--max-dets", type=int, default=300, help="per image; -1: no limit")
    parser.add_argument(
        "--per-category", type=int, help="most detections per category over the whole data set"
    )
    parser.add_argument(
        "--fixed",
        action="store_true",
        help="AP_fixed: the same as --max-dets -1 --per-category 10000",
    )
    parser.add_argument(
        "--mask-area",
        action="store_true",
        help="masks decide what is small, medium and large, as in Detectron2; lvis takes the boxes "
        "where the results have any",
    )
    parser.add_argument("--engine", choices=["native", "lvis"], default="native")
    parser.add_argument(
        "--bootstrap",
        type=int,
        metavar="N",
        help="resamples of the images for 95%% intervals (default: 0, of classifiers 1000)",
    )
    parser.add_argument("--output", help="JSON file for metrics and the table by category")
    args = parser.parse_args(argv)
    classifiers = args.annotations.endswith(".npz")
    if args.bootstrap is None:
        args.bootstrap = 1000 if classifiers else 0
    if args.bootstrap < 0:
        parser.error(f"--bootstrap {args.bootstrap} must be at least 0")
    if classifiers:
        return classification(args)
    if not args.results:
        parser.error("give the annotations and a result file")
    if args.fixed:
        args.max_dets, args.per_category = -1, 10000

    check_tasks(args.iou_type, args.engine)
    start = time.perf_counter()
    truth, remark = load_truth(args.annotations, args.train_annotations, args.bounds)
    if args.engine == "native":
        truth = GroundTruth.load(truth)
    detections = Detections.from_file(args.results)
    masks = not len(detections) or detections.has_mask.any()
    results = {
        iou_type: evaluate_lvis(
            truth,
            detections,
            iou_type,
            args.max_dets,
            args.engine,
            per_category=args.per_category,
            mask_area=args.mask_area,
            bootstrap=args.bootstrap,
        )
        for iou_type in args.iou_type or ["bbox", "segm"][: 2 if masks else 1]
    }
    for result in results.values() if remark else ():
        for name in ("APr", "APc", "APf"):
            result.metrics[name] = -100.0
            result.intervals.pop(name, None)
    names = list(next(iter(results.values())).metrics)
    print(" " * 9 + "".join(f"{name:>9}" for name in names))
    for iou_type, result in results.items():
        cells = ["n/a" if v < 0 else f"{v:.2f}" for v in result.metrics.values()]
        print(f"{iou_type:<9}" + "".join(f"{cell:>9}" for cell in cells))
        for end, side in enumerate(("from", "to") if result.intervals else ()):
            ends = [result.intervals.get(name, (float("nan"),) * 2)[end] for name in names]
            cells = ["" if v != v else f"{v:.2f}" for v in ends]
            print(f"  {side:<7}" + "".join(f"{cell:>9}" for cell in cells))
    if remark:
        print(remark)
    print(f"{len(detections):,} detections in {time.perf_counter() - start:.1f} s")
    if args.output:
        content = {
            iou_type: {
                "metrics": result.metrics,
                "intervals": defined(result.intervals),
                "per_category": known(result.per_category),
            }
            for iou_type, result in results.items()
        }
        write_text(args.output, json.dumps(content, indent=1))


def classification(args):
    """Evaluate one or two classifiers, print, write."""
    paths = [path for path in (args.annotations, args.results) if path]
    results = [Predictions.load(path).evaluate(bootstrap=args.bootstrap) for path in paths]
    parts = [({**r.metrics, **r.shifted}, r.intervals) for r in results]
    names = [f"{i}: {path}" for i, path in enumerate(paths, 1)]
    if len(results) == 2:
        change = compare_top1(*results, bootstrap=max(args.bootstrap, 1))
        parts.append((change.difference, change.intervals if args.bootstrap else {}))
        names.append(f"2 - 1, the same images: {change.gained} gained, {change.lost} lost")
    print("\n".join(names))
    for metric in parts[0][0]:
        cells = []
        for values, intervals in parts:
            low, high = intervals.get(metric, (None, None))
            value = f"{values[metric]:.2f}" if metric in values else ""
            cells.append(value if low is None else f"{value} [{low:.2f}, {high:.2f}]")
        print(f"{metric:<11}" + "".join(f"{cell:>24}" for cell in cells))
    if args.output:
        content = [
            {
                "metrics": known([values])[0],
                "intervals": defined(intervals),
            }
            for values, intervals in parts
        ]
        for entry, result in zip(content, results):
            entry["per_class"] = known(result.per_class)
        write_text(args.output, json.dumps(content, indent=1))


def known(rows):
    """Rows as JSON has them: None for NaN, also of both ends of an interval."""

    def value(v):
        return None if v != v or (isinstance(v, tuple) and v[0] != v[0]) else v

    return [{k: value(v) for k, v in row.items()} for row in rows]


def defined(intervals):
    """Those that are not NaN, which JSON does not have."""
    return {name: ends for name, ends in intervals.items() if ends[0] == ends[0]}


if __name__ == "__main__":
    cli.run(main)
