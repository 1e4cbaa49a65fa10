#!/usr/bin/env python
"""The study of `make study`: training recipes, post-hoc methods and seeds of a study file.

    tools/run_study.py --config configs/studies/paper_tables.yaml

trains what is missing, chooses every strength on the calibration split, evaluates once on val and
writes study.json, tables in Markdown, LaTeX and CSV, and a page with pictures. Started again it
goes on where it was; recipes and seeds that are added to the file are all that it then does, and
other methods mean no training. The form of the file: configs/studies/README.md.
"""

import argparse
from pathlib import Path

from lvis_tde import cli
from lvis_tde.arguments import Parser


def main(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("--config", required=True, metavar="FILE", help="study file")
    parser.add_argument(
        "--output", metavar="FOLDER", help="for all that it makes; default: output/NAME of the file"
    )
    parser.add_argument(
        "--quick", action="store_true", help="minutes, as the file's quick: says; output/NAME_quick"
    )
    parser.add_argument(
        "--jobs", type=int, metavar="N",
        help="processes, of one thread each; default: one a GPU, or without any one a core",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="only list what is done and missing")
    parser.add_argument(
        "--only-outputs", action="store_true", help="only tables and page of what is finished"
    )
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        help='"KEY VALUE" of all configs, such as MODEL.DEVICE cuda',
    )
    args = parser.parse_args(argv)
    from lvis_tde.engine.console import setup_console
    from lvis_tde.experiments.study.file import read_study
    from lvis_tde.experiments.study.run import run_study, states, units_of

    configs = Path(__file__).parent.parent / "configs"
    study = read_study(args.config, configs=configs, quick=args.quick)
    name = Path(args.config).stem + ("_quick" if args.quick else "")
    output = args.output or Path("output") / name
    if args.dry_run:
        found = states(units_of(study, output, args.opts))
        for unit, state in found.items():
            print(f"{unit:<40} {state}")
        print(f"{sum(state == 'done' for state in found.values())} of {len(found)} units are done")
        return 0
    setup_console()
    outcome = run_study(
        study, output, jobs=args.jobs, only_outputs=args.only_outputs, overrides=args.opts
    )
    if outcome.study is not None:
        print(f"\n{outcome.tables}\n")
        files = ("study.json", "tables.md", "tables.tex", "tables.csv", "index.html")
        cli.wrote(Path(output) / file for file in files)
    for unit, why in outcome.failed.items():
        print(f"failed: {unit}: {why} (more in {Path(output) / unit / 'log.txt'})")
    return 1 if outcome.failed else 0


if __name__ == "__main__":
    cli.run(main)
