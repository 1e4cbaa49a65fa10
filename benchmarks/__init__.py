"""Benchmarks behind ``tools/benchmark.py``: Detectron2, the authors' formulation, this project.

Each module has ``add_arguments(parser)`` and ``run(args) -> dict``; the dict is what ``--json``
writes, ratios last. Importing this package imports none of them.
"""
