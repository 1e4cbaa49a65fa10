#!/usr/bin/env python
"""Choose the strength of TDE for a trained model: one pass over the images for all alphas.

With --setting NAME they are strengths of another post-hoc step, such as logit_adjustment, and the
files have its name: choose one after the other, each from the config that the last sweep wrote.

    tools/sweep_alpha.py --config-file output/tde/config_tde.yaml --calibrate 0.05

The output folder of the config gets alpha.json, alpha.png, config_alpha.yaml, the config with the
best alpha, and model_alpha.pth, the checkpoint that it names. With --calibrate the images are
training images, so that val stays untouched. Best are images that the model has not trained on:
--split-only writes their annotations and those of the others before training, to be used as
--train-data and, here, as --test-data.
"""

import functools
from pathlib import Path

from lvis_tde import cli
from lvis_tde.arguments import DEFAULT_ALPHAS, SETTINGS, argument_parser, numbers


def parse_args(argv):
    parser = argument_parser(
        trains=False, epilog=__doc__, usage="%(prog)s --config-file FILE [options] [KEY VALUE ...]"
    )
    parser.add_argument(
        "--alphas",
        type=numbers,
        default=DEFAULT_ALPHAS,
        metavar="A,B",
        help="such as 0,0.5,1 (default: nine from 0 to 3)",
    )
    parser.add_argument(
        "--setting", choices=SETTINGS, default="alpha", help="what --alphas are strengths of"
    )
    parser.add_argument(
        "--metric",
        metavar="M",
        help="what the best is the best in (default: segm/AP, bbox/AP, classification/balanced)",
    )
    parser.add_argument(
        "--calibrate",
        type=float,
        metavar="F",
        help="measure on this share of the training images (8: on 8 of each class), not on the "
        "test set",
    )
    parser.add_argument("--split-seed", type=int, default=0, help="other images for --calibrate")
    parser.add_argument(
        "--split-only",
        action="store_true",
        help="only write calibration.json and training.json of --calibrate",
    )
    args = parser.parse_args(argv)
    if args.split_only and args.calibrate is None:
        parser.error("--split-only needs --calibrate F")
    return args


def work(args):
    from detectron2.utils import comm

    from lvis_tde.calibration.hold_out import hold_out
    from lvis_tde.calibration.sweep import format_sweep, run_sweep
    from lvis_tde.calibration.sweep_checks import sweep_checks
    from lvis_tde.engine import check, setup

    calibrated = args.calibrate is not None
    args.eval_only = not calibrated
    options = {"testing": not calibrated, "trained": not args.split_only}
    if not args.split_only:
        options["also"] = functools.partial(
            sweep_checks,
            alphas=args.alphas,
            setting=args.setting,
            metric=args.metric,
            calibrate=args.calibrate,
        )
    if args.check:
        return cli.tell(check(args, **options))
    recipe = setup(args, **options)
    folder = Path(recipe.output_dir)
    if args.split_only:
        (dataset,) = recipe.train_sets
        hold_out(dataset, args.calibrate, folder, args.split_seed, rest=True)
        return cli.wrote(folder / name for name in ("calibration.json", "training.json"))
    report = run_sweep(
        recipe,
        args.alphas,
        setting=args.setting,
        metric=args.metric,
        calibrate=args.calibrate,
        seed=args.split_seed,
    )
    if comm.is_main_process():
        print(f"\n{report['dataset']}, {report['seconds']:.0f} s\n\n{format_sweep(report)}\n")
        best = report[args.setting]
        print(f"{args.setting} {best:g} has the best {report['metric']}")
        names = ("{}.json", "{}.png", "config_{}.yaml", "model_{}.pth")
        files = [folder / name.format(args.setting) for name in names]
        cli.wrote([*files, folder / "log.txt"])


def main(argv=None):
    args = parse_args(argv)
    from lvis_tde.engine import launch

    return launch(work, args)


if __name__ == "__main__":
    cli.run(main)
