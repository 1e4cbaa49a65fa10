#!/usr/bin/env python
"""Draw what a trained model detects without and with TDE, side by side.

    tools/demo.py 'photos/*.jpg' clip.mp4 --config-file C --output DIR --explain \
        --opts MODEL.WEIGHTS W

A folder stands for the pictures and videos in it. Class names and frequency groups are those of
the config's dataset, of --test-data, or of the checkpoint. Without TDE detections from
--score-threshold on are shown, with TDE as many, the best first. Inputs that cannot be read are
skipped; the exit code is then 1.
"""

import argparse
import sys

from lvis_tde import cli
from lvis_tde.arguments import Parser, add_data_arguments, add_fast_argument, add_weight_arguments


def parse_args(argv):
    parser = Parser(description=__doc__)
    parser.add_argument("inputs", nargs="+", help="images, videos, folders, globs (quoted)")
    parser.add_argument("--config-file", required=True, help="of a model with TDE heads")
    parser.add_argument("--output", default="output/pictures", help="folder for the pictures")
    parser.add_argument("--alpha", type=float, help="strength of TDE, default: the config's")
    parser.add_argument(
        "--score-threshold",
        type=float,
        default=0.3,
        help="least score shown without TDE (default: 0.3); with TDE as many objects are shown",
    )
    parser.add_argument(
        "--top", type=int, help="most objects on each side (default: 20), or classes (6)"
    )
    parser.add_argument(
        "--panel-size",
        type=int,
        help="pixels of the longer side (640; of classifiers 360)",
    )
    parser.add_argument(
        "--explain", action="store_true", help="charts of the detections that TDE changed most"
    )
    add_data_arguments(parser, train=False)
    add_weight_arguments(parser)
    add_fast_argument(parser)
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="overrides of the config"
    )
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    from lvis_tde.calibration.checkpoint import load_trained
    from lvis_tde.calibration.settings import tde_predictors
    from lvis_tde.data.classification import register_by_name
    from lvis_tde.engine import check_run, load_recipe, setup_console, use_data, use_fast
    from lvis_tde.image_demo import ImageDemo
    from lvis_tde.modeling import ImageClassifier
    from lvis_tde.predictor import TDEDemo, classes_of, find_inputs

    setup_console()
    inputs = find_inputs(args.inputs)
    recipe = load_recipe(args.config_file, args.opts)
    recipe.partial_weights = args.allow_partial_weights
    recipe.output_dir = args.output
    use_data(recipe, test=args.test_data)
    if args.alpha is not None:
        recipe.set_alpha(args.alpha)
    recipe.use_cpu_without_gpu()
    if args.fast:
        use_fast(recipe)
    check_run(recipe)
    dataset = next(iter((*recipe.test_sets, *recipe.train_sets)), "__unused")
    missing = None
    try:
        register_by_name(dataset)
    except FileNotFoundError as error:
        missing = error
    model = load_trained(recipe)
    if missing and tde_predictors(model)[0].statistics.class_names is None:
        raise missing  # nobody knows the names
    classes = classes_of(model, dataset)
    given = {"panel_size": args.panel_size, "top": args.top}
    options = {name: value for name, value in given.items() if value is not None}
    if isinstance(model, ImageClassifier):
        demo = ImageDemo(model, recipe.prepare, classes, **options)
    else:
        options["score_threshold"] = args.score_threshold
        demo = TDEDemo(model, recipe.prepare, classes, **options)
    cli.wrote(demo.run(inputs, args.output, explain=args.explain))
    for path, reason in demo.skipped:
        print(f"skipped: {path}: {reason}", file=sys.stderr)
    return 1 if demo.skipped else 0


if __name__ == "__main__":
    cli.run(main)
