"""What one process of the demo does: train a model, choose on ``calib``, evaluate on ``val``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..calibration.family import COMPOSITION, Choice
from ..calibration.methods import FACTUAL
from ..calibration.posthoc_table import gains_of
from ..calibration.settings import describe
from ..data.generated import KINDS
from ..engine import load_config
from ..engine.console import setup_part
from ..evaluation import compare_resampled
from ..posthoc import Settings
from .demo_pictures import draw_images
from .recording import RecordingEvaluator, intervals_of, report
from .steps import chosen, evaluated, measured, shown_metrics, trained

__all__ = ["DEFAULT_PARTS", "PAIRS", "PARTS", "Part", "Plan", "run_part"]


@dataclass(frozen=True)
class Part:
    """A model of the demo; its config is ``demo_<name>.yaml``.

    Attributes:
        off, on: names of its runs without TDE and with it.
    """

    off: str
    on: str


PARTS = {
    "softmax": Part("softmax", "softmax_tde"),
    "deconfound": Part("deconfound", "tde"),
    "sigmoid": Part("sigmoid", "sigmoid_tde"),
    "sigmoid_federated": Part("sigmoid_federated", "sigmoid_federated_tde"),
    "sigmoid_deconfound": Part("sigmoid_deconfound", "sigmoid_deconfound_tde"),
}
DEFAULT_PARTS = ("softmax", "deconfound", "sigmoid")

# Runs, and those whose difference to them is told, from the same resamples of val.
PAIRS = (
    ("tde", "deconfound"),
    ("deconfound", "softmax"),
    ("tde", "softmax"),
    *((part.on, part.off) for name, part in PARTS.items() if name != "deconfound"),
)
_RESAMPLES = 1000
# Shorter than the configs' own, which studies take: the demo has 15 minutes on two cores.
_SCHEDULE = ("SOLVER.MAX_ITER", 1000, "SOLVER.STEPS", (700, 900))


@dataclass(frozen=True)
class Plan:
    """What the processes of one demo share.

    Attributes:
        output, kind, seed, configs, num_pictures, mean_batches, images_per_class, overrides: see
            :func:`~lvis_tde.experiments.demo.run_demo`.
        pictured: the part whose detections are drawn.
    """

    output: Path
    kind: str
    seed: int
    configs: Path
    num_pictures: int
    mean_batches: int | None
    images_per_class: int | None
    overrides: Sequence
    pictured: str

    @property
    def folder(self) -> Path:
        return self.output / f"seed{self.seed}"

    def names(self) -> dict[str, str]:
        """Registered names of the splits."""
        return KINDS[self.kind].register(self.output / "datasets", seed=self.seed)

    def config(self, part: str):
        """The config of a part."""
        train = self.names()["train"]
        if MetadataCatalog.get(train).get("thing_classes") is None:
            DatasetCatalog.get(train)  # fills in the metadata
        options = [
            "SEED", self.seed,
            "OUTPUT_DIR", str(self.folder / part),
            "MODEL.ROI_HEADS.NUM_CLASSES", len(MetadataCatalog.get(train).thing_classes),
            "DATASETS.TRAIN", (train,),
            "DATASETS.TEST", (),
            *_SCHEDULE,
            *self.overrides,
        ]  # fmt: skip
        return load_config(str(self.configs / f"demo_{part}.yaml"), options)


def run_part(name: str, plan: Plan) -> dict[str, Any]:
    """All of a part, in this process, with one thread.

    Args:
        name: a key of :data:`PARTS`.
        plan: of the demo.

    Returns:
        dict: its share of what :func:`~lvis_tde.experiments.demo.run_demo` returns, and
        ``evaluations``: the results on val of each run and task, with their resamples.
    """
    # One thread a process, also where there are more cores: two processes with two threads each
    # are far slower on two cores, and the figures must not depend on the number of cores.
    torch.set_num_threads(1)
    setup_part(str(plan.folder / name), name)
    part, cfg, names = PARTS[name], plan.config(name), plan.names()
    model = trained(cfg)
    mean = measured(cfg, model, plan.mean_batches, plan.images_per_class)
    choice = chosen(cfg, model, names["calib"], rounds=2, most=8)  # a demo has 15 minutes
    tde = choice.row("tde")
    alpha = float(tde.strength or 0)
    best = choice.row(COMPOSITION).settings
    # The factual probabilities are those of the model as trained: one pass for both.
    shown = [Settings(), tde.settings, *([best] if name == plan.pictured else [])]
    boxes = [row.settings for row in choice.rows]
    evaluator = RecordingEvaluator.from_config(cfg, names["val"], bootstrap=_RESAMPLES)
    runs = evaluated(cfg, model, names["val"], shown, boxes, evaluator)
    off, on = runs[Settings()], runs[tde.settings]
    if name == plan.pictured:
        before, after = (runs[one]["segm"]["detections"] for one in (Settings(), best))
        draw_images(names["val"], before, after, describe(best), plan.num_pictures, plan.output)
    found: dict[str, Any] = {
        **report({part.off: off, part.on: on}),
        "alphas": {part.on: alpha},
        "calibrations": {
            part.on: {f"{a:g}": {"bbox": shown_metrics(m)} for a, m in choice.curve("tde").items()}
        },
        "feature_mean": {part.on: mean},
        "evaluations": {
            run: {task: values["result"] for task, values in side.items()}
            for run, side in ((part.off, off), (part.on, on))
        },
        "posthoc": {name: _family(choice, runs)},
        "tried": {
            name: {describe(one) or FACTUAL: shown_metrics(m) for one, m in choice.tried.items()}
        },
    }
    return {"alpha": alpha, **found} if part.on == "tde" else found


def _family(choice: Choice, runs: Mapping[Settings, Mapping]) -> list[dict[str, Any]]:
    """Rows of the table of methods."""
    results = {row.settings: runs[row.settings]["bbox"]["result"] for row in choice.rows}
    first = runs[Settings()]["bbox"]["result"]
    return [
        {
            "method": row.method,
            "strength": row.strength,
            "settings": dataclasses.asdict(row.settings),
            "calibration": shown_metrics(row.metrics),
            "val": shown_metrics(runs[row.settings]["bbox"]),
            "intervals": intervals_of(results[row.settings]),
            "gains": gains_of(compare_resampled(first, results[row.settings])),
        }
        for row in choice.rows
    ]
