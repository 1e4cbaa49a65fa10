#!/usr/bin/env python
"""Generate a long-tailed set: glyphs or shapes in LVIS format, or emoji_lt for classification.

See lvis_tde/data/glyphs.py, synthetic.py and emoji_lt.py.
"""

import argparse
import inspect
import logging
import os

from lvis_tde import cli
from lvis_tde.arguments import Parser
from lvis_tde.data.emoji_lt import PROFILES, make_emoji_lt
from lvis_tde.data.generated import KINDS
from lvis_tde.data.glyphs import SIZES

MAKERS = {**{name: kind.make for name, kind in KINDS.items()}, "emoji_lt": make_emoji_lt}
HELP = {
    "size": f"{' or '.join(SIZES)}: the defaults of all numbers",
    "font": "font file; found on the system by default",
    "imbalance": "training images of the most frequent class over those of the rarest",
    "profile": f"{' or '.join(PROFILES)}: how the training images per class fall",
    "train_per_class": "training images of the most frequent class",
    "jobs": "processes to draw in",
    "overwrite": "replace another set",
}


def main(argv=None) -> None:
    choice = Parser(add_help=False)
    choice.add_argument(
        "--kind",
        choices=MAKERS,
        default="shapes",
        help="what is drawn; --help of each kind lists its arguments",
    )
    kind = choice.parse_known_args(argv)[0].kind
    parser = Parser(
        parents=[choice],
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--root",
        default=os.environ.get("DETECTRON2_DATASETS", "datasets"),
        help="folder of the data sets",
    )
    for key, parameter in inspect.signature(MAKERS[kind]).parameters.items():
        flag, value, text = "--" + key.replace("_", "-"), parameter.default, HELP.get(key, " ")
        if value is inspect.Parameter.empty:
            continue
        if isinstance(value, bool):
            parser.add_argument(flag, action="store_true", help=text)
        elif isinstance(value, tuple):
            parser.add_argument(
                flag, type=int, nargs=len(value), default=value, metavar=("LOW", "HIGH"), help=text
            )
        else:
            convert = type(value) if value is not None else str if key == "font" else int
            parser.add_argument(flag, type=convert, default=value, help=text)
    arguments = vars(parser.parse_args(argv))
    del arguments["traceback"]  # for cli.run
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    make = MAKERS[arguments.pop("kind")]
    print(make(arguments.pop("root"), **arguments))


if __name__ == "__main__":
    cli.run(main)
