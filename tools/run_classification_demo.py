#!/usr/bin/env python
"""The demo of `make demo-classification`: small long-tailed sets, every method, several seeds.

    tools/run_classification_demo.py --sets digits_lt --seeds 0 1 2 3 4

prints the table of the README.
"""

from pathlib import Path

from lvis_tde import cli
from lvis_tde.arguments import Parser

SETS = ("digits_lt", "emoji_lt")


def main(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("--sets", nargs="+", choices=SETS, help="default: all that can be made")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument(
        "--output", default="output/demo_classification", help="folder for all that it makes"
    )
    args = parser.parse_args(argv)
    if args.jobs < 1:
        parser.error(f"--jobs {args.jobs} must be at least 1")
    if len(set(args.seeds)) < len(args.seeds):
        parser.error(f"--seeds {' '.join(map(str, args.seeds))}: each once")
    from lvis_tde.data.glyphs import find_font
    from lvis_tde.experiments.classification_demo import (
        format_classification,
        run_classification_demo,
    )

    sets = args.sets or list(SETS)
    if args.sets is None:
        try:
            find_font()
        except ValueError as error:
            sets.remove("emoji_lt")
            print(f"The demo leaves emoji_lt out. {error}")
    configs = Path(__file__).parent.parent / "configs" / "classification"
    results = run_classification_demo(
        args.output, seeds=args.seeds, sets=sets, configs=configs, jobs=args.jobs
    )
    print(f"\nTest part, mean and 95 % interval over seeds\n\n{format_classification(results)}")
    print(f"\nPictures and results.json are in {args.output}")


if __name__ == "__main__":
    cli.run(main)
