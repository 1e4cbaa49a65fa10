#!/usr/bin/env python
"""Train or evaluate a LazyConfig: Detectron2's launcher and arguments, LVIS metrics at the end.

Overrides are "key=value", for example train.max_iter=10. Without a GPU it runs on the CPU.
"""

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import default_argument_parser

from lvis_tde import lazy_engine
from lvis_tde.engine import launch


def main(args):
    cfg = lazy_engine.setup(args)
    if not args.eval_only:
        lazy_engine.train(cfg, resume=args.resume)
        return
    model = lazy_engine.build_model(cfg)
    DetectionCheckpointer(model, cfg.train.output_dir).resume_or_load(
        cfg.train.init_checkpoint, resume=args.resume
    )
    lazy_engine.evaluate(cfg, model)


if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    launch(main, args)
