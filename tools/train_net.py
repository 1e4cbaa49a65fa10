#!/usr/bin/env python
"""Train or evaluate a model: Detectron2's launcher and arguments, LVIS metrics at the end.

    tools/train_net.py --config-file C.yaml --num-gpus 8 SOLVER.IMS_PER_BATCH 16
    tools/train_net.py --config-file C.py --num-gpus 8 dataloader.train.total_batch_size=16
    tools/train_net.py --config-file C.yaml --check          # what is missing or wrong, in seconds

Overrides are "KEY VALUE" for a yacs config and "key=value" for a LazyConfig. Without a GPU it runs
on the CPU and says so.
"""

from pathlib import Path

from lvis_tde import cli
from lvis_tde.arguments import argument_parser


def work(args):
    from lvis_tde.engine import check, setup

    if args.check:
        return cli.tell(check(args))
    recipe = setup(args)
    folder = Path(recipe.output_dir)
    if args.eval_only:
        result = recipe.evaluate(recipe.load_model(resume=args.resume))
        files = [*sorted(folder.glob("report/**/report.html")), *sorted(folder.glob("inference/*"))]
    else:
        result = recipe.train(resume=args.resume)
        files = [folder / "model_final.pth", folder / "metrics.json"]
    cli.wrote([*files, folder / "log.txt"])
    return result


def main(argv=None):
    args = argument_parser(epilog=__doc__).parse_args(argv)
    from lvis_tde.engine import launch

    return launch(work, args)


if __name__ == "__main__":
    cli.run(main)
