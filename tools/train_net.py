#!/usr/bin/env python
"""Train or evaluate a model: Detectron2's launcher and arguments, LVIS metrics at the end.

    tools/train_net.py --config-file C.yaml --num-gpus 8 SOLVER.IMS_PER_BATCH 16
    tools/train_net.py --config-file C.py --num-gpus 8 dataloader.train.total_batch_size=16
    tools/train_net.py --config-file C.yaml --check          # what is missing or wrong, in seconds

With --eval-only and --beside off (or --beside alpha=1,logit_adjustment=0.5) the report has these
settings beside the model's own, from one pass over the images, and the interval of the difference.

Overrides are "KEY VALUE" for a yacs config and "key=value" for a LazyConfig. Without a GPU it runs
on the CPU and says so.
"""

from pathlib import Path

from lvis_tde import cli
from lvis_tde.arguments import argument_parser


def work(args):
    from lvis_tde.calibration.beside import evaluate_beside, parse_settings
    from lvis_tde.engine import check, setup
    from lvis_tde.engine.results import log_results
    from lvis_tde.engine.trainer import model_name

    beside = None if args.beside is None else parse_settings(args.beside)
    if args.check:
        return cli.tell(check(args))
    recipe = setup(args)
    folder = Path(recipe.output_dir)
    if args.eval_only:
        recipe.weights = recipe.weights_to_load(resume=args.resume)
        model = recipe.load_model()
        if beside is None:
            result = recipe.evaluate(model, bootstrap=args.bootstrap)
        else:
            name = model_name(recipe.weights, recipe.output_dir)
            options = {"bootstrap": args.bootstrap}
            result = evaluate_beside(recipe, model.eval(), beside, name, **options)
            log_results(result)
        files = [*sorted(folder.glob("report/**/report.html")), *sorted(folder.glob("inference/*"))]
    else:
        result = recipe.train(resume=args.resume)
        files = [folder / "model_final.pth", folder / "metrics.json"]
    cli.wrote([*files, folder / "log.txt"])
    return result


def main(argv=None):
    parser = argument_parser(epilog=__doc__)
    parser.add_argument(
        "--beside", metavar="SETTINGS", help="with --eval-only: settings to compare the model's own"
    )
    parser.add_argument(
        "--bootstrap",
        type=int,
        default=None,
        metavar="N",
        help="with --eval-only: resamples of the images for the report's intervals; 0: none "
        "(default: 1000, of sets above 2000 images 2,000,000 / images, at least 200)",
    )
    args = parser.parse_args(argv)
    if args.beside is not None and not args.eval_only:
        parser.error("--beside needs --eval-only")
    if args.bootstrap is not None and not args.eval_only:
        parser.error("--bootstrap needs --eval-only")
    args.bootstrap = -1 if args.bootstrap is None else args.bootstrap
    if args.fast and not args.eval_only:
        parser.error("--fast needs --eval-only: a model in training is not changed")
    from lvis_tde.engine import launch

    return launch(work, args)


if __name__ == "__main__":
    cli.run(main)
