"""The demo: softmax, de-confound and sigmoids, each without and with TDE, on a long-tailed set.

Generates the set, trains small models that differ in the box classifier alone, chooses the strength
of each method of the post-hoc family on the calibration split and evaluates on val. Everything
random follows from one seed.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from ..calibration.posthoc_table import gains_of
from ..calibration.tried import as_json
from ..data.files import write_text
from ..data.generated import KINDS
from ..data.glyphs import CREDIT
from ..data.processes import end_with_parent
from ..evaluation import compare_resampled
from .demo_parts import DEFAULT_PARTS, PAIRS, PARTS, Plan, run_part
from .demo_pictures import draw_charts, draw_classes

__all__ = ["run_demo"]


def _claim(plan: Plan, parts: Sequence[str]) -> None:
    """Takes the folders of all parts, or none if one holds something else."""
    files = {Path(c.OUTPUT_DIR) / "config.yaml": c.dump() for c in map(plan.config, parts)}
    for file, text in files.items():
        if file.is_file() and file.read_text("utf-8") != text:
            raise ValueError(
                f"{file.parent} holds a run with another configuration or another kind of set. "
                f"Remove {plan.folder}, or choose another output."
            )
    for file, text in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, text)


def run_demo(
    output: str | os.PathLike,
    *,
    kind: str = "glyphs",
    seed: int = 0,
    configs: str | os.PathLike = "configs",
    num_pictures: int = 4,
    mean_batches: int | None = 30,
    images_per_class: int | None = 16,
    parts: Sequence[str] = DEFAULT_PARTS,
    jobs: int | None = None,
    dataset: Mapping | None = None,
    overrides: Sequence = (),
) -> dict:
    """Generates the set, trains, calibrates, evaluates and draws.

    A second call finds what is finished; an interrupted one is resumed.

    Args:
        output: folder for ``results.json`` and pictures of the latest call; below it
            ``datasets/`` and, for each seed, checkpoints, logs and its own ``results.json``.
        kind: of generated set: "glyphs", or "shapes", which need no font.
        seed: of the generated set, the weights and the order of training.
        configs: folder with ``demo_<part>.yaml``.
        num_pictures: val images to draw beside the opening picture, of the first part's model.
        mean_batches, images_per_class: what the mean of a trained model, the statistics of its
            logits and the means of its classes are taken from, see
            :func:`~lvis_tde.experiments.steps.measured`.
        parts: models to train, of :data:`~lvis_tde.experiments.demo_parts.PARTS`.
        jobs: processes of one thread each, to draw glyphs and to train the models side by side; by
            default two, and then one a part. 1 runs all in this process. The figures do not depend
            on it.
        dataset: further arguments of what makes the set, see :mod:`lvis_tde.data.generated`.
        overrides: "KEY VALUE" changes of the configs.

    Returns:
        dict: ``{"set": {"kind", ...}, "seed", "alpha", "runs": {run: {task: {metric: percent}}},
        "intervals": {run: {task: {metric: [low, high]}}}, "gains": [{"run", "over", "bbox", "segm":
        {metric: {"difference", "interval", "wins"}}}], "alphas": {run: alpha}, "calibrations":
        {run: {alpha: {task: {metric: percent}}}}, "feature_mean": {run: {...}}, "posthoc": {part:
        [{"method", "strength", "settings", "calibration": {metric: percent}, "val": {metric:
        percent}, "intervals": {metric: [low, high]}, "gains": {metric: {...}}}]}, "image_count":
        {class: images}, "per_class": {run: {class: mask AP}}}``, as in ``results.json``. ``set``
        has the parameters of the generated set, for glyphs with the hash of the font. ``alpha`` is
        that of the run "tde", None without it. ``intervals`` are of AP, AP50, AP75, APr, APc and
        APf on val: 95 %, from 1000 resamples of its images. Each of ``gains`` is the difference of
        two runs on the same resamples (``PAIRS`` of :mod:`.demo_parts`), its interval, and the
        share of them in which the first wins. Each of ``alphas`` has the best box AP on the
        calibration split, and ``calibrations`` the box metrics of all that were tried.
        ``feature_mean`` says how sure the estimated means are, how far from the tracked one, and
        how many classes have none.
        ``posthoc`` is of boxes: for each method the strength with the best AP on the calibration
        split, 0 if it is best left out, the arguments of :class:`~lvis_tde.posthoc.Settings` that
        this is, and AP, APr, APc and APf there and on val, with intervals and the gains over the
        model as trained on val; the last row is the best composition found, whose strength is
        None. ``tried`` is ``{part: {settings in words: metrics}}`` of all on the calibration split.

    Raises:
        ValueError: if the kind or a part is unknown, if the set cannot be made (no font), or if the
            folder holds a run with another configuration.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        raise ValueError(
            f"parts must be some of {', '.join(PARTS)}, got {', '.join(parts) or 'none'}"
        )
    parts = [part for part in PARTS if part in parts]
    folders = Path(output), kind, seed, Path(configs)
    amounts = num_pictures, mean_batches, images_per_class
    plan = Plan(*folders, *amounts, tuple(overrides), pictured=parts[0])
    plan.folder.mkdir(parents=True, exist_ok=True)
    glyphs = kind == "glyphs"
    options = {**({"jobs": jobs or 2} if glyphs else {}), **(dataset or {})}
    made = KINDS[kind].make(plan.output / "datasets", seed=seed, **options)
    parameters = json.loads((made / "parameters.json").read_text("utf-8"))
    _claim(plan, parts)
    if jobs == 1:
        found = [run_part(name, plan) for name in parts]
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs or len(parts), context, initializer=end_with_parent) as pool:
            found = list(pool.map(run_part, parts, itertools.repeat(plan)))
    results: dict[str, Any] = {"set": {"kind": kind, **parameters}, "seed": seed, "alpha": None}
    evaluations: dict[str, Mapping] = {}
    for share in found:
        evaluations.update(share.pop("evaluations"))
        for key, value in share.items():
            if isinstance(value, dict):
                value = {**results.get(key, {}), **value}
            results[key] = value
    results["gains"] = [
        {"run": run, "over": over, **_gains(evaluations[over], evaluations[run])}
        for run, over in PAIRS
        if {run, over} <= evaluations.keys()
    ]
    results = as_json(results)
    for folder in (plan.folder, plan.output):
        write_text(folder / "results.json", json.dumps(results, indent=2) + "\n")
    draw_charts(results, plan.output)
    draw_classes(plan.names()["train"], plan.output, CREDIT if glyphs else None)
    return results


def _gains(before: Mapping, after: Mapping) -> dict[str, Any]:
    return {task: gains_of(compare_resampled(before[task], after[task])) for task in sorted(after)}
