"""What ``sigmoid_parts`` measures on one trained model; results are plain, for a JSON file.

Everything that is chosen is chosen on the calibration split, everything that is reported is of val.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lvis_tde.posthoc import Settings, class_means, keep_sum, logit_adjustment

from .sigmoid_parts_regions import Regions
from .sigmoid_parts_statistics import (
    auc_pooled,
    auc_within,
    best,
    fit_logistic,
    principal_component,
)

__all__ = [
    "CURVES",
    "curves",
    "directions",
    "limits",
    "lift",
    "projections",
    "ranking",
    "shift_of_the_sum",
    "softmax_powers",
]

TDE_STRENGTHS = (0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
CLASS_STRENGTHS = (0.5, 1.0, 2.0)
BETAS = (0.5, 1.0, 1.5, 2.0)
SHIFTS = (-0.2, 0.1, 0.2, 0.35, 0.5)
ALPHAS = (0.5, 1.0, 1.5, 2.0, 3.0)
POWERS = (0.5, 0.75, 1.5, 2.0, 3.0)
NO_CUT = 1e-8  # score threshold at which nothing that matters is cut
STRIDE = 10  # one in so many regions that do not show a class counts in rankings
TYPICAL = 0.35  # of the region part, where calibration says 0
LIMITS = (100, 300, -1)  # detections an image
BETA = 1.0  # of logit adjustment, in rankings and directions
SIMILARITIES = (4.0, 8.0, 12.0, 16.0, 24.0)
SIMILARITY = 12.0  # of the classes' means, in rankings and where calibration says 0

# Name to strength to settings. With the shift the region part drops out, so "class part" stands
# for both parts there.
CURVES: dict[str, tuple[Sequence[float], Callable[[float], Settings]]] = {
    "region part": (TDE_STRENGTHS, lambda s: Settings(region=s)),
    "class part": (CLASS_STRENGTHS, lambda s: Settings(class_=s)),
    "TDE, both parts": (TDE_STRENGTHS, lambda s: Settings(region=s, class_=s)),
    "TDE + shift": (CLASS_STRENGTHS, lambda s: Settings(class_=s, keep_sum="factual")),
    "logit adjustment": ((BETA,), lambda s: Settings(logit_adjustment=s, keep_sum="")),
    "logit adjustment + shift": (
        BETAS,
        lambda s: Settings(logit_adjustment=s, keep_sum="factual"),
    ),
    "class means": (SIMILARITIES, lambda s: Settings(class_means=s)),
}


def curves(splits: Mapping[str, Regions], names: Sequence[str] = tuple(CURVES)) -> dict[str, Any]:
    """Box AP by group over strengths: name to split to strength to metrics, from strength 0."""
    result: dict[str, Any] = {name: {} for name in names}
    for split, regions in splits.items():
        factual = regions.ap(regions.probabilities(Settings()))
        for name in names:
            strengths, settings = CURVES[name]
            result[name][split] = {0.0: factual} | {
                s: regions.ap(regions.probabilities(settings(s))) for s in strengths
            }
    return result


def lift(regions: Regions) -> Tensor:
    """(R,) what TDE's region part adds to every logit of a region at strength 1."""
    return -regions.cosine @ regions.pull[:-1].mean(0)


def shift_of_the_sum(regions: Regions, beta: float = BETA) -> Tensor:
    """(R,) the shift of :func:`keep_sum` after logit adjustment."""
    factual = regions.logits[:, :-1]
    adjusted = logit_adjustment(factual, regions.counts, beta, background=False)
    return keep_sum(adjusted, factual)[:, 0] - adjusted[:, 0]


def logit_spread(regions: Regions) -> float:
    """Standard deviation of a class's logit over regions, mean over classes."""
    return float(regions.logits[:, :-1].std(0).mean())


def candidates(regions: Regions, limit: int) -> tuple[Tensor, Tensor]:
    """Rows of regions and classes of the factual detections, without a threshold."""
    rows, classes = [], []
    probabilities = regions.probabilities(Settings())
    for _, instances, kept in regions.detect(probabilities, limit, NO_CUT):
        rows.append(kept)
        classes.append(instances.pred_classes)
    return torch.cat(rows), torch.cat(classes)


def ranking(regions: Regions, region_strength: float) -> dict[str, Any]:
    """How scores rank the regions that show a class above those that do not, for each group: AUC.

    Every region counts, whether it would pass as a detection or not; of those that do not show the
    class one in :data:`STRIDE`.

    Args:
        regions: of val.
        region_strength: of the region part.
    """
    labels, logits = regions.labels, regions.logits[:, :-1]
    raised, shift = lift(regions)[:, None], shift_of_the_sum(regions)[:, None]
    zeros = torch.zeros_like(logits)
    similarity = class_means(
        zeros, regions.features, regions.means, 1.0, center=regions.center, background=False
    )
    scores = {
        "x . d": raised.expand_as(logits),  # a multiple of it for a linear classifier
        "shift": shift.expand_as(logits),
        "logit": logits,
        "logit, region part removed": logits + region_strength * raised,
        "logit + shift": logits + shift,
        "similarity": similarity,
        f"logit + {SIMILARITY:g} similarity": logits + SIMILARITY * similarity,
    }
    some = torch.arange(len(labels)) % STRIDE == 0
    background = labels == regions.num_classes
    negatives = {
        "all": some,
        "background": some & background,
        "other objects": some & ~background,
    }
    few = torch.arange(len(labels)) % (20 * STRIDE) == 0  # times as many classes
    result: dict[str, Any] = {}
    for group in "rcf":
        classes = (regions.groups == group).nonzero()[0].tolist()
        result[group] = {
            name: {
                "pooled": auc_pooled(score, labels, classes, few),
                **{kind: auc_within(score, labels, classes, no) for kind, no in negatives.items()},
            }
            for name, score in scores.items()
        }
    return result


def projections(regions: Regions) -> dict[str, Any]:
    """Where ``x . d`` lies for kinds of regions, in units of its mean over foreground regions."""
    foreground = regions.labels < regions.num_classes
    raised = lift(regions)
    unit = float(raised[foreground].mean())
    rare = torch.tensor(regions.groups == "r")
    frequent = torch.tensor(regions.groups == "f")
    none = torch.tensor([False])
    rows, classes = candidates(regions, regions.limit)
    false = rows[rare[classes] & (regions.labels[rows] != classes)].unique()
    kinds = {
        "true rare": torch.cat([rare, none])[regions.labels],
        "false rare": torch.zeros_like(foreground).index_fill(0, false, True),
        "true frequent": torch.cat([frequent, none])[regions.labels],
        "background": ~foreground,
    }
    pull = regions.pull[:-1].sum(1)
    log_counts = regions.counts.clamp(min=1).log()
    shift = shift_of_the_sum(regions)
    return {
        "quantiles": {
            name: (raised[mask] / unit).quantile(torch.tensor([0.1, 0.5, 0.9])).tolist()
            for name, mask in kinds.items()
            if mask.any()
        },
        "shift": {name: float(shift[mask].mean()) for name, mask in kinds.items() if mask.any()},
        "unit, logits": unit,
        "d . w negative, %": 100 * float((pull < 0).double().mean()),
        "correlation of d . w with log n": _correlation(pull, log_counts),
        "correlation of x . d with the shift": _correlation(raised, shift),
        "correlation of x . d with the shift, foreground": _correlation(
            raised[foreground], shift[foreground]
        ),
        "spread of the region part": float(raised.std()),
        "spread of logits": logit_spread(regions),
    }


def _correlation(x: Tensor, y: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([x.double(), y.double()]))[0, 1])


def limits(val: Regions, chosen: Mapping[str, float]) -> dict[str, Any]:
    """AP with limits of detections an image, -1 for none, and no threshold.

    Args:
        val: regions.
        chosen: curve to strength.
    """
    rows = {"trained model": Settings()}
    for name in ("region part", "logit adjustment", "logit adjustment + shift", "class means"):
        strength = BETA if name == "logit adjustment" else chosen[name]
        if strength:
            rows[name] = CURVES[name][1](strength)
    return {
        name: {n: val.ap(val.probabilities(settings), n, NO_CUT) for n in LIMITS}
        for name, settings in rows.items()
    }


def directions(splits: Mapping[str, Regions], seed: int) -> dict[str, Any]:
    """One number for each region added to all its logits: which number does most?

    Directions are fitted on the even images of the calibration split, the strength is chosen on
    the odd ones. It is in units of the logits' spread for one of the number's, and may be negative.
    """
    calib, val = splits["calib"], splits["val"]
    even, odd = halves(calib)
    numbers = {name: (f(odd), f(val)) for name, f in _numbers(even, seed).items()}
    result = {}
    start = odd.ap(odd.logits.sigmoid())["AP"]
    spread = logit_spread(odd)
    for name, (of_odd, of_val) in numbers.items():
        unit = spread / float(of_odd.std())
        curve = {0.0: start} | {
            s: odd.ap((odd.logits + s * unit * of_odd[:, None]).sigmoid())["AP"] for s in SHIFTS
        }
        strength = best(curve)
        metrics = val.ap((val.logits + strength * unit * of_val[:, None]).sigmoid())
        result[name] = {"strength": strength, **metrics}
    return result


def _numbers(even: Regions, seed: int) -> dict[str, Callable[[Regions], Tensor]]:
    foreground = even.labels < even.num_classes
    shown = even.features[foreground]
    generator = torch.Generator().manual_seed(seed)
    rows, classes = candidates(even, even.limit)
    learned = fit_logistic(
        even.features[rows], even.logits[rows, classes], even.labels[rows] == classes
    )
    axes = {
        "first principal component": principal_component(shown),
        "background to foreground": shown.mean(0) - even.features[~foreground].mean(0),
        "random": torch.randn(even.features.shape[1], generator=generator),
        "learned": learned,
    }
    return {
        "mean (TDE's region part)": lift,
        "shift of the sum": shift_of_the_sum,
        **{name: lambda r, u=axis: r.features @ u for name, axis in axes.items()},
        "norm of the features": lambda r: r.features.norm(dim=1),
    }


def halves(regions: Regions) -> tuple[Regions, Regions]:
    """Regions of the even and of the odd images; AP is over the half's own images."""
    return regions.subset(slice(0, None, 2)), regions.subset(slice(1, None, 2))


def softmax_powers(splits: Mapping[str, Regions]) -> dict[str, Any]:
    """``(1 - p_C)^k q_i`` on a softmax, without TDE and at the alpha of the calibration split."""
    calib = splits["calib"]
    alpha = best({a: calib.ap(powered(calib, a, 1.0))["AP"] for a in (0.0, *ALPHAS)})
    result: dict[str, Any] = {"alpha": alpha}
    for name, strength in (("without TDE", 0.0), ("with TDE", alpha)):
        result[name] = {
            split: {k: regions.ap(powered(regions, strength, k)) for k in (*POWERS, 1.0)}
            for split, regions in splits.items()
        }
    return result


def powered(regions: Regions, alpha: float, power: float) -> Tensor:
    """(R, C + 1) scores ``(1 - p_C)^power q_i``, the background's as it is."""
    probabilities = regions.probabilities(Settings(region=alpha, class_=alpha))
    foreground = probabilities[:, :-1]
    total = foreground.sum(1, keepdim=True).clamp(min=1e-30)
    return torch.cat([foreground * total ** (power - 1), probabilities[:, -1:]], dim=1)
