#!/usr/bin/env python
"""Put TDE on a trained model: estimate the feature mean that it needs from training batches.

Takes the config and the weights of a detector or classifier, with TDE or without, and writes a
checkpoint with the mean and the statistics of the classes, and a config for it; choose strengths
next with tools/sweep_posthoc.py. The weights, and the scores at strength 0, stay the model's.

    tools/estimate_feature_mean.py --config-file C --output DIR MODEL.WEIGHTS W
"""

from pathlib import Path

from lvis_tde import cli
from lvis_tde.arguments import argument_parser


def parse_args(argv):
    parser = argument_parser(
        trains=False,
        fast=False,  # what is measured stays in the checkpoint
        epilog=__doc__,
        usage="%(prog)s --config-file FILE [options] [KEY VALUE ...]",
    )
    parser.add_argument("--output", default="output/tde", help="folder for what it writes")
    parser.add_argument(
        "--max-batches", type=int, metavar="N",
        help="most batches per process (500; with --class-means all training images once, if that "
        "is more)",
    )  # fmt: skip
    parser.add_argument(
        "--tolerance",
        type=float,
        default=2.0,
        help="stop when the means of two halves of the batches are so near, in degrees",
    )
    parser.add_argument(
        "--class-means", action="store_true",
        help="the mean of each class, too, for MODEL.POSTHOC.CLASS_MEANS; goes on until each was "
        "seen",
    )  # fmt: skip
    parser.add_argument(
        "--images-per-class", type=int, metavar="N",
        help="the means of the classes from N training images of each: a fraction of a pass",
    )  # fmt: skip
    parser.add_argument("--num-heads", type=int, default=1, help="K for a softmax model")
    return parser.parse_args(argv)


def work(args):
    from lvis_tde.calibration.checkpoint import run_estimate
    from lvis_tde.calibration.class_means import check_number
    from lvis_tde.calibration.estimate import MAX_BATCHES, check_stopping
    from lvis_tde.engine import check, setup

    check_stopping(MAX_BATCHES if args.max_batches is None else args.max_batches, args.tolerance)
    if args.images_per_class is not None:
        check_number(args.images_per_class)
    options = {
        "testing": False,
        "trained": True,
        "output_dir": args.output,
        "prepare": lambda recipe: recipe.put_tde_on_softmax(args.num_heads),
    }
    if args.check:
        return cli.tell(check(args, **options))
    found = run_estimate(
        setup(args, **options),
        num_heads=args.num_heads,
        max_batches=args.max_batches,
        tolerance=args.tolerance,
        class_means=args.class_means,
        images_per_class=args.images_per_class,
    )
    folder = Path(args.output)
    cli.wrote(folder / name for name in ("model_tde.pth", "config_tde.yaml", "log.txt"))
    return found


def main(argv=None):
    args = parse_args(argv)
    from lvis_tde.engine import launch

    return launch(work, args)


if __name__ == "__main__":
    cli.run(main)
