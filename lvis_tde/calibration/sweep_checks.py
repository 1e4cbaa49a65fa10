"""What can be known of a sweep before it runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import nn

from ..arguments import SETTINGS
from ..data.classification.names import register_by_name
from ..evaluation.lvis_evaluator import REPORTED
from ..layers.functional import check_alpha
from ..modeling.image_classifier import ImageClassifier
from ..posthoc.margins import check_strength
from .hold_out import check_amount
from .image_sweep import SHOWN as IMAGE_METRICS
from .image_sweep import TASK
from .settings import tde_predictors

__all__ = [
    "check_defined",
    "check_metric",
    "check_strengths",
    "default_metric",
    "least_images",
    "metrics_of",
    "sweep_checks",
]

# What the evaluators report for each kind of data set.
_METRICS = {
    "lvis": REPORTED,
    "coco": ("AP", "AP50", "AP75", "APs", "APm", "APl"),
    "classification": IMAGE_METRICS,
}
_GROUPS = {"APr": ("r", "rare"), "APc": ("c", "common"), "APf": ("f", "frequent")}


def sweep_checks(
    recipe,
    model: Callable[[], nn.Module],
    *,
    alphas: Sequence[float],
    setting: str,
    metric: str | None,
    calibrate: float | None,
) -> Iterator[tuple[str, Callable[[], str]]]:
    """The checks of :func:`~lvis_tde.calibration.sweep.run_sweep`, for a start of the tool.

    Args:
        recipe: a :class:`~lvis_tde.engine.Recipe`.
        model: gives its model, perhaps without numbers.
        alphas, setting, metric, calibrate: as ``run_sweep`` takes them.
    """

    def strengths() -> str:
        dataset, _ = check_strengths(recipe, alphas, setting, calibrate)
        tde_predictors(model())
        return f"{len(set(alphas))} values of {setting} on {dataset}"

    def measured() -> str:
        dataset, _ = check_strengths(recipe, alphas, setting, calibrate)
        chosen = metric or default_metric(model())
        check_metric(chosen, model(), dataset)
        check_calibrate(model(), calibrate)
        check_defined(chosen, dataset, least_images=least_images(calibrate))
        return chosen

    yield "strengths", strengths
    yield "metric", measured


def check_strengths(
    recipe, alphas: Sequence[float], setting: str, calibrate: float | None = None
) -> tuple[str, str]:
    """The one dataset that a sweep is for, and the attribute of the recipe that names it.

    Raises:
        ValueError: there is not exactly one, there is no alpha, a value is negative or not finite,
            the amount of images is neither a share nor a number, or the setting is unknown.
    """
    if setting not in SETTINGS:
        raise ValueError(f"setting={setting!r} must be one of {', '.join(SETTINGS)}.")
    for alpha in alphas:
        check_alpha(alpha) if setting == "alpha" else check_strength(setting, alpha)
    if calibrate is not None:
        check_amount(calibrate)
    split = "train_sets"
    if calibrate is None:
        split = "calibration_sets" if recipe.calibration_sets else "test_sets"
    sets = getattr(recipe, split)
    if len(sets) != 1 or not len(alphas):
        raise ValueError(
            f"A sweep needs one dataset and at least one alpha, got {sets} and {alphas}. "
            f"Set {recipe.keys[split]}."
        )
    register_by_name(sets[0])
    return sets[0], split


def default_metric(model: nn.Module) -> str:
    """What a strength is the best in where nothing is said."""
    if isinstance(model, ImageClassifier):
        return f"{TASK}/balanced"
    masks = getattr(getattr(model, "roi_heads", None), "mask_on", True)
    return "segm/AP" if masks else "bbox/AP"


def metrics_of(dataset: str) -> Sequence[str]:
    """Names of what an evaluation on a data set reports; none where they are not known."""
    return _METRICS.get(MetadataCatalog.get(dataset).get("evaluator_type"), ())


def least_images(calibrate: float | None) -> int:
    """Images that a class needs to be measured: of a share one is left to training."""
    return 2 if calibrate is not None and calibrate < 1 else 1


def check_calibrate(model: nn.Module, calibrate: float | None) -> None:
    """
    Raises:
        ValueError: a share of the training images is asked for, and the model classifies images.
    """
    if calibrate is not None and isinstance(model, ImageClassifier):
        raise ValueError(
            f"calibrate={calibrate} cuts an annotation file. What a classifier of images is "
            "measured on is DATASETS.CALIB, images that it was not trained on, such as "
            "cifar100_lt_100_calib for a model that was trained on cifar100_lt_100_fit."
        )


def check_defined(metric: str, dataset: str, *, least_images: int = 1) -> None:
    """Refuses the metric of a group of classes that a data set shows no object of.

    Args:
        metric: task and name, such as "segm/APr".
        dataset: registered name. One whose metadata has no groups says nothing.
        least_images: that a class must have.

    Raises:
        ValueError: the metric would be undefined.
    """
    name = metric.rpartition("/")[2]
    groups = MetadataCatalog.get(dataset).get("class_frequency")
    if groups is None or name not in _GROUPS:
        return
    letter, word = _GROUPS[name]
    images: Counter[int] = Counter()
    for record in DatasetCatalog.get(dataset):
        images.update({one["category_id"] for one in record.get("annotations", ())})
    if not any(images[i] >= least_images for i, group in enumerate(groups) if group == letter):
        raise ValueError(
            f"{metric} would be undefined: no {word} class is on {least_images} or more images of "
            f"{dataset}. Choose another metric, other images or other --bounds."
        )


def check_metric(metric: str, model: nn.Module, dataset: str) -> None:
    """Refuses a metric that an evaluation would not give, before it runs.

    Args:
        metric: task and name, such as "segm/APr".
        model: with the branches that decide which tasks there are.
        dataset: registered name. Of one whose ``evaluator_type`` is neither "lvis" nor "coco" only
            the tasks are known.

    Raises:
        ValueError: for a metric that will not be among the results.
    """
    kind = MetadataCatalog.get(dataset).get("evaluator_type")
    heads = getattr(model, "roi_heads", None)
    tasks = ["bbox"] if kind != TASK else [TASK]
    if getattr(heads, "mask_on", False):
        tasks.append("segm")
    if getattr(heads, "keypoint_on", False) and kind != "lvis":
        tasks.append("keypoints")
    names = metrics_of(dataset)
    task, _, name = metric.partition("/")
    # COCO's evaluator also reports each class.
    classes = MetadataCatalog.get(dataset).get("thing_classes") or ()
    known = name in names or (kind == "coco" and name.removeprefix("AP-") in classes)
    if (task, name) == ("keypoints", "APs"):
        known = False
    if task not in tasks or not name or (names and not known):
        raise ValueError(
            f"metric={metric!r} will not be in the results on {dataset}: choose TASK/NAME with "
            f"TASK one of {', '.join(tasks)} and NAME one of {', '.join(names) or 'its metrics'}."
        )
