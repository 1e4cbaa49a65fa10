#!/usr/bin/env python
"""Choose post-hoc methods and strengths for a trained model, and see what they give elsewhere.

One pass over held-out images serves all; ended, it goes on where it was. The output folder gets
posthoc.md, the table, .json and .png, config_posthoc.yaml and model_posthoc.pth.
"""

import functools
from pathlib import Path

from lvis_tde import cli
from lvis_tde.arguments import argument_parser, named_numbers, names


def parse_args(argv):
    parser = argument_parser(
        trains=False,
        epilog=__doc__.replace("\n\n", "\n"),
        usage="%(prog)s --config-file FILE --calibrate 8 [options] [KEY VALUE ...]",
    )
    group = parser.add_argument_group("what to choose on, and what to report on")
    where = group.add_mutually_exclusive_group()
    where.add_argument(
        "--calibrate", type=float, metavar="F", help="share of training images, 8: 8 of each class"
    )
    where.add_argument("--choose-on", metavar="SET", help="choose on a registered set")
    where.add_argument(
        "--calib-data", nargs=2, metavar=("JSON", "IMAGES"), help="choose on images of your own"
    )
    group.add_argument(
        "--split-seed", type=int, default=0, metavar="N", help="other images for --calibrate"
    )
    group.add_argument("--report-on", metavar="SET", help="default: the config's test set")
    group.add_argument("--no-report", action="store_true", help="choose only")
    group.add_argument(
        "--bootstrap", type=int, default=1000, metavar="N", help="resamples for intervals (1000)"
    )
    group = parser.add_argument_group("how to choose")
    group.add_argument(
        "--metric", metavar="M", help="such as APr (of boxes AP, of classifiers balanced)"
    )
    group.add_argument(
        "--max-loss",
        type=named_numbers,
        action="append",
        default=[],
        metavar="APf=0.5",
        help="points that it may cost; --metric is then APr (few)",
    )
    group.add_argument("--methods", type=names, metavar="A,B", help="such as tde,logit_adjustment")
    group.add_argument(
        "--grid",
        type=named_numbers,
        action="append",
        default=[],
        metavar="tde=0.5,1",
        help="other strengths of a method",
    )
    group.add_argument(
        "--rounds", type=int, default=4, metavar="N", help="of the search for compositions (4)"
    )
    group.add_argument(
        "--memory", type=float, default=8, metavar="GIB", help="for what is kept of the images (8)"
    )
    args = parser.parse_args(argv)
    for name, values in args.max_loss:
        if len(values) != 1:
            parser.error(f"--max-loss {name} takes one number, got {values}")
    args.grid = dict(args.grid)
    args.max_loss = {name: values[0] for name, values in args.max_loss}
    return args


def use_sets(recipe, *, choose_on, report_on, no_report=False):
    """Points a recipe at the sets of the command line."""
    if no_report:
        recipe.test_sets = ()
    if choose_on:
        recipe.calibration_sets = (choose_on,)
    if report_on:
        recipe.test_sets = (report_on,)


def work(args):
    from detectron2.utils import comm

    from lvis_tde.calibration.posthoc_checks import posthoc_checks
    from lvis_tde.calibration.posthoc_sweep import FILES, run_posthoc_sweep
    from lvis_tde.engine import check, setup

    args.eval_only = args.calibrate is None
    sets = {"choose_on": args.choose_on, "report_on": args.report_on}
    same = ("metric", "max_loss", "calibrate", "methods", "grid", "bootstrap", "rounds", "memory")
    choice = {name: getattr(args, name) for name in same}
    choice["report"] = not args.no_report
    options = {
        "testing": args.calibrate is None or not args.no_report,
        "trained": True,
        "prepare": functools.partial(use_sets, **sets, no_report=args.no_report),
        "also": functools.partial(posthoc_checks, **choice),
    }
    if args.check:
        return cli.tell(check(args, **options))
    recipe = setup(args, **options)
    use_sets(recipe, **sets)
    report = run_posthoc_sweep(recipe, **choice, seed=args.split_seed)
    if comm.is_main_process():
        folder = Path(recipe.output_dir)
        print(f"\n{(folder / 'posthoc.md').read_text('utf-8')}\n{report['seconds']:.0f} s")
        cli.wrote([*(folder / name for name in FILES), folder / "log.txt"])


def main(argv=None):
    args = parse_args(argv)
    from lvis_tde.engine import launch

    return launch(work, args)


if __name__ == "__main__":
    cli.run(main)
