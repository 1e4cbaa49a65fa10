#!/usr/bin/env python
"""Train or evaluate a model: Detectron2's launcher and arguments, LVIS metrics at the end.

    tools/train_net.py --config-file C.yaml --num-gpus 8 SOLVER.IMS_PER_BATCH 16
    tools/train_net.py --config-file C.py --num-gpus 8 dataloader.train.total_batch_size=16

Overrides are "KEY VALUE" for a yacs config and "key=value" for a LazyConfig. Without a GPU it runs
on the CPU and says so.
"""

from lvis_tde import cli
from lvis_tde.engine import argument_parser, launch, setup


def work(args):
    recipe = setup(args)
    if args.eval_only:
        return recipe.evaluate(recipe.load_model(resume=args.resume))
    return recipe.train(resume=args.resume)


def main(argv=None):
    return launch(work, argument_parser(epilog=__doc__).parse_args(argv))


if __name__ == "__main__":
    cli.run(main)
