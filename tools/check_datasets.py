#!/usr/bin/env python
"""Say what is there and what is missing of a data set, see datasets/README.md.

Exit code 0: everything is there. 1: something is missing or wrong.
"""

import os

from lvis_tde import cli
from lvis_tde.arguments import Parser


def main(argv=None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--root",
        default=os.environ.get("DETECTRON2_DATASETS", "datasets"),
        help="default: $DETECTRON2_DATASETS, or datasets",
    )
    parser.add_argument(
        "--sets",
        nargs="+",
        default=["lvis_v1"],
        help="of lvis_v1 (the default), lvis_v0.5, cifar10, cifar100, imagenet_lt, places_lt, "
        "inat2018, digits_lt and emoji_lt",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="do not read the annotation files of LVIS, nor look for each image of the others",
    )
    args = parser.parse_args(argv)
    from lvis_tde.data.check import DATASETS, check_dataset
    from lvis_tde.data.classification.check import CLASSIFICATION_SETS, check_classification

    known = [*DATASETS, *CLASSIFICATION_SETS]
    unknown = [name for name in args.sets if name not in known]
    if unknown:
        parser.error(f"--sets: {unknown[0]!r} is none of {', '.join(known)}")
    complete = True
    for name in args.sets:
        if name in DATASETS:
            findings = check_dataset(args.root, DATASETS[name], read_json=not args.quick)
        else:
            findings = check_classification(
                args.root, CLASSIFICATION_SETS[name], look_for_images=not args.quick
            )
        complete = complete and all(finding.ok for finding in findings)
        print(name)
        for finding in findings:
            print(f"  {'ok ' if finding.ok else 'BAD'}  {finding.path}: {finding.message}")
    print("complete" if complete else "not complete, see datasets/README.md")
    return 0 if complete else 1


if __name__ == "__main__":
    cli.run(main)
