#!/usr/bin/env python
"""Generate the synthetic long-tailed LVIS set, see lvis_tde/data/synthetic.py."""

import argparse
import inspect
import logging
import os

from lvis_tde import cli
from lvis_tde.data.synthetic import make_synthetic_lvis


def main(argv=None) -> None:
    defaults = {
        key: parameter.default
        for key, parameter in inspect.signature(make_synthetic_lvis).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--root",
        default=os.environ.get("DETECTRON2_DATASETS", "datasets"),
        help="folder that will hold synthetic_lvis/",
    )
    for key, value in defaults.items():
        flag = "--" + key.replace("_", "-")
        if isinstance(value, bool):
            parser.add_argument(flag, action="store_true", help="replace another set")
        elif isinstance(value, tuple):
            parser.add_argument(
                flag, type=int, nargs=len(value), default=value, metavar=("LOW", "HIGH"), help=" "
            )
        else:
            parser.add_argument(flag, type=type(value), default=value, help=" ")
    arguments = vars(parser.parse_args(argv))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    print(make_synthetic_lvis(arguments.pop("root"), **arguments))


if __name__ == "__main__":
    cli.run(main)
