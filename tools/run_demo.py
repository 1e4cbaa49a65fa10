#!/usr/bin/env python
"""The demo of `make demo`: generates a long-tailed set, trains small models, compares methods."""

import argparse
from pathlib import Path

from lvis_tde import cli
from lvis_tde.arguments import Parser
from lvis_tde.data.generated import KINDS
from lvis_tde.data.glyphs import find_font
from lvis_tde.visualization.palette import RUN_NAMES


def main(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--set",
        choices=KINDS,
        help="what is generated; glyphs, or shapes where no color emoji font is installed",
    )
    parser.add_argument("--seed", type=int, default=0, help="varies everything that is random")
    parser.add_argument("--output", default="output/demo", help="folder for all that it makes")
    parser.add_argument(
        "--parts",
        help="models to train, separated by commas: softmax,deconfound,sigmoid (the default), "
        "sigmoid_federated, sigmoid_deconfound",
    )
    parser.add_argument("--summary", action="store_true", help="only sum up the seeds run so far")
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        help='"KEY VALUE" of the configs, such as MODEL.DEVICE cuda',
    )
    args = parser.parse_args(argv)
    from lvis_tde.experiments.demo import run_demo
    from lvis_tde.experiments.demo_parts import DEFAULT_PARTS
    from lvis_tde.experiments.demo_tables import format_family, format_table, summarize_seeds

    if args.summary:
        print(summarize_seeds(args.output))
        return
    kind = args.set or "glyphs"
    if args.set is None:
        try:
            find_font()
        except ValueError as error:
            kind = "shapes"
            print(f"The demo takes shapes instead of glyphs. {error}")
    configs = Path(__file__).parent.parent / "configs"
    results = run_demo(
        args.output,
        kind=kind,
        seed=args.seed,
        configs=configs,
        parts=args.parts.split(",") if args.parts else DEFAULT_PARTS,
        overrides=args.opts,
    )
    alphas = ", ".join(f"{RUN_NAMES[run]}: {alpha:g}" for run, alpha in results["alphas"].items())
    print(f"\nSeed {results['seed']}, alpha by box AP on the calibration split ({alphas})")
    print(f"\n{format_table(results)}\n\n{format_family(results)}")
    print(f"\nPictures and results.json are in {args.output}")


if __name__ == "__main__":
    cli.run(main)
