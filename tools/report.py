#!/usr/bin/env python
"""Write an HTML page and PNGs about one or more result files.

python tools/report.py lvis_v1_val.json results.json --output report
python tools/report.py lvis_v1_val.json --compare softmax.json tde.json --output report
python tools/report.py --compare softmax.npz tde.npz --output report     # of classifiers
"""

from pathlib import Path

from lvis_tde import cli
from lvis_tde.arguments import Parser, add_group_arguments
from lvis_tde.evaluation import (
    Detections,
    GroundTruth,
    Predictions,
    compare_lvis,
    evaluate_lvis,
)
from lvis_tde.evaluation.confusion import rare_confusions
from lvis_tde.evaluation.report.top1 import write_top1_report
from lvis_tde.evaluation.report.writer import write_report
from lvis_tde.evaluation.truth_file import load_truth


def main(argv=None):
    """Parse the command line, evaluate, write the report."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "annotations",
        nargs="?",
        help="file in LVIS or COCO format, or a registered set; none for classifiers",
    )
    parser.add_argument(
        "results",
        nargs="?",
        help="result file: JSON list of detections, or predictions.npz of a classifier",
    )
    add_group_arguments(parser)
    parser.add_argument("--compare", nargs=2, metavar=("A", "B"), help="two result files")
    parser.add_argument("--names", nargs="+", help="what the runs are called (default: file names)")
    parser.add_argument(
        "--iou-type",
        choices=["bbox", "segm", "boundary"],
        help="default: segm if the results have masks, else bbox",
    )
    parser.add_argument("--dataset", help="its name in the title (default: that of the file)")
    parser.add_argument("--max-dets", type=int, default=300, help="per image; -1: no limit")
    parser.add_argument(
        "--mask-area",
        action="store_true",
        help="masks decide what is small, medium and large, as in Detectron2; lvis takes the boxes "
        "where the results have any",
    )
    parser.add_argument(
        "--bootstrap",
        type=int,
        default=1000,
        metavar="N",
        help="resamples of the images for 95%% intervals (default: 1000; 0: none)",
    )
    parser.add_argument("--output", default="report", help="folder (default: report)")
    args = parser.parse_args(argv)
    if args.annotations and args.annotations.endswith(".npz"):
        classifiers = [path for path in (args.annotations, args.results) if path]
        args.annotations = args.results = None
        if len(classifiers) == 1:
            (args.results,) = classifiers
        elif args.compare:
            parser.error("give two results, or --compare A B, not both")
        else:
            args.compare = classifiers
    if args.bootstrap < 0:
        parser.error(f"--bootstrap {args.bootstrap} must be at least 0")
    if bool(args.results) == bool(args.compare):
        parser.error("give either one result file or --compare A B")
    paths = [Path(path) for path in args.compare or [args.results]]
    names = args.names or _short_names(paths)
    if len(set(names)) != len(paths):
        parser.error(f"--names must give {len(paths)} different names, got {names}")

    classifiers = all(path.suffix == ".npz" for path in paths)
    if classifiers == bool(args.annotations):
        parser.error("detections need their annotations, predictions.npz of classifiers need none")
    if classifiers:
        results = {
            n: Predictions.load(p).evaluate(bootstrap=args.bootstrap) for n, p in zip(names, paths)
        }
        print(write_top1_report(args.output, results, bootstrap=args.bootstrap))
        return
    content, remark = load_truth(args.annotations, args.train_annotations, args.bounds)
    truth = GroundTruth.load(content)
    runs = {name: Detections.from_file(path) for name, path in zip(names, paths)}
    masks = all(not len(detections) or detections.has_mask.any() for detections in runs.values())
    iou_type = args.iou_type or ("segm" if masks else "bbox")
    options = {"mask_area": args.mask_area, "bootstrap": args.bootstrap}
    comparison = None
    if args.compare and args.bootstrap:
        comparison = compare_lvis(truth, *runs.values(), iou_type, args.max_dets, **options)
        results = dict(zip(runs, (comparison.a, comparison.b)))
    else:
        results = {
            name: evaluate_lvis(truth, detections, iou_type, args.max_dets, **options)
            for name, detections in runs.items()
        }
    confusions = {name: rare_confusions(truth, one, args.max_dets) for name, one in runs.items()}
    dataset = args.dataset or Path(args.annotations).stem
    if remark:
        remark = f"Rare, common and frequent are by the images of {dataset} itself. {remark}"
        print(remark)
    page = write_report(
        args.output, results, confusions, dataset=dataset, remark=remark, comparison=comparison
    )
    print(page)


def _short_names(paths):
    # Detectron2 gives every run's file the same name; the folders tell them apart.
    names = [path.stem for path in paths]
    if len(paths) == 2 and names[0] == names[1]:
        parts = [path.resolve().parts for path in paths]
        differing = [i for i, (a, b) in enumerate(zip(*parts)) if a != b]
        names = [part[differing[0]] if differing else str(i) for i, part in enumerate(parts, 1)]
    return names


if __name__ == "__main__":
    cli.run(main)
