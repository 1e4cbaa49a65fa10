#!/usr/bin/env python
"""Train or evaluate a LazyConfig: Detectron2's launcher and arguments, LVIS metrics at the end.

Overrides are "key=value", for example train.max_iter=10. Without a GPU it runs on the CPU.
"""

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import default_argument_parser

from lvis_tde.engine import launch, lazy


def main(args):
    cfg = lazy.setup(args)
    if not args.eval_only:
        lazy.train(cfg, resume=args.resume)
        return
    model = lazy.build_model(cfg)
    DetectionCheckpointer(model, cfg.train.output_dir).resume_or_load(
        cfg.train.init_checkpoint, resume=args.resume
    )
    lazy.evaluate(cfg, model)


if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    launch(main, args)
