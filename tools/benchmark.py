#!/usr/bin/env python
"""Benchmarks: Detectron2, the authors' formulation and this project side by side in one run.

python tools/benchmark.py head|nms|mask|inference|training|evaluation|sweep [options] [--json]
python tools/benchmark.py bootstrap|feature_mean|generated_set|glyph_classifier [options] [--json]
python tools/benchmark.py classification_loader [options] [--json]
python tools/benchmark.py mean_update|demo_training|rehearsal|gpu|scaling [options] [--json]
python tools/benchmark.py sigmoid_parts|precision|unheld --runs FOLDER ... [options] [--json]
"""

import argparse
import importlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

BENCHMARKS = {
    "head": "features to class probabilities",
    "nms": "boxes and probabilities to detections",
    "scaling": "head, post-processing, evaluation and report over the number of classes",
    "mask": "mask head, time and memory, inference and training",
    "inference": "images to detections, end to end",
    "precision": "AP of trained models, optimized for inference and in half precision",
    "training": "a training step",
    "mean_update": "one step of the running mean",
    "demo_training": "iterations of the demo's model, and whether losses stay finite",
    "gpu": "every figure that waits for a GPU, as a table of docs/benchmarks.md",
    "feature_mean": "momentum of the running mean, against the precise mean",
    "evaluation": "detections to AP",
    "bootstrap": "intervals of LVIS metrics",
    "sweep": "nine alphas in one pass, against one evaluation",
    "classification_loader": "augmented batches of small images, beside torchvision's loader",
    "glyph_classifier": "what a class-balanced classifier tells apart of the glyphs",
    "sigmoid_parts": "what TDE and logit adjustment do on sigmoid classifiers",
    "rehearsal": "LVIS v1 at full size without LVIS: time and memory of each command",
    "unheld": "strengths chosen without held-out images, against the held-out choice",
    "generated_set": "what is in a set beside LVIS, and what a model confuses in it",
}


def print_table(result, indent=""):
    """Print a nested dict, numbers to four digits."""
    width = max((len(str(key)) for key in result), default=0)
    for key, value in result.items():
        if isinstance(value, dict):
            print(f"{indent}{key}")
            print_table(value, indent + "  ")
        else:
            text = f"{value:.4g}" if isinstance(value, float) else value
            print(f"{indent}{key!s:<{width}}  {text}")


def main(argv=None):
    """Parse the command line, run one benchmark, print its result."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="name", required=True)
    for name, summary in BENCHMARKS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        command.add_argument("--json", action="store_true", help="print JSON")
        if name in argv[:1]:  # only the module that is asked for is imported
            module = importlib.import_module(f"benchmarks.{name}")
            module.add_arguments(command)
    args = parser.parse_args(argv)
    result = module.run(args)
    if args.json:
        print(json.dumps(result, indent=2))
    elif hasattr(module, "markdown"):  # tables for a page
        print(module.markdown(result))
    else:
        print_table(result)
    if result.get("failed"):  # of benchmarks that run others
        sys.exit(1)


if __name__ == "__main__":
    main()
