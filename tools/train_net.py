#!/usr/bin/env python
"""Train or evaluate a model: Detectron2's launcher and arguments, LVIS metrics at the end.

Without a GPU it runs on the CPU and says so.
"""

from detectron2.checkpoint import DetectionCheckpointer

from lvis_tde.engine import Trainer, argument_parser, launch, setup


def main(args):
    cfg = setup(args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(
            cfg.MODEL.WEIGHTS, resume=args.resume
        )
        return Trainer.test_and_report(cfg, model)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    args = argument_parser().parse_args()
    launch(main, args)
