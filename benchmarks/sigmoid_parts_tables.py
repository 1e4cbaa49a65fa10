"""Tables of ``sigmoid_parts``: results of runs to rows of text, means over seeds."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lvis_tde.visualization.palette import GROUPS

from .sigmoid_parts_statistics import best, plateau, transfer_loss, variation

__all__ = ["tables"]

METRICS = ("AP", "APr", "APc", "APf")
MARGIN = 0.5  # AP below the optimum that the width of an optimum is measured at
SHARP = ("region part", "TDE, both parts", "logit adjustment + shift")
TRAINING = (
    "mean foreground, logits",
    "spread / logits' spread",
    "AUC of x . d, rare",
    "AUC of the logit, rare",
    "region part: best on calibration",
    "AP / APr without",
    "with it",
    "logit adjustment + shift",
)
Result = Mapping[str, Any]
Table = list[list[str]]


def tables(results: Sequence[Result]) -> dict[str, Table]:
    """Title to rows, the first being the head.

    Args:
        results: of runs, numbers as numbers; those of one set and name are seeds of one model.
    """
    groups = _grouped(r for r in results if r["sigmoid"])
    softmax = _grouped(r for r in results if not r["sigmoid"])
    made = {
        "Parts of TDE, and the shift: box AP on val, strength from the calibration split": parts(
            groups
        ),
        f"Optima on calibration, seed by seed, and where its AP is {MARGIN} below at most": optima(
            groups
        ),
        "Ranking of regions that show a class above others: AUC, val": rankings(groups),
        "x . d of kinds of regions, mean foreground = 1: median (10 % to 90 %)": where(groups),
        "The region part in training": training(groups),
        "One number for each region, added to all its logits": numbers(groups),
        "Strengths across models: absolute, and relative to the spread of the logits": scales(
            groups
        ),
        "Limit of detections an image: box AP / APr on val, no score threshold": limits(groups),
        "Softmax: (1 - p_C)^k q_i, k from the calibration split": powers(softmax),
    }
    return {title: rows for title, rows in made.items() if len(rows) > 1}


def _grouped(results: Iterable[Result]) -> dict[tuple[str, str], list[Result]]:
    groups = defaultdict(list)
    for result in results:
        groups[result["kind"], result["name"]].append(result)
    return {key: sorted(some, key=lambda r: r["seed"]) for key, some in sorted(groups.items())}


def mean(values: Iterable[float | None], digits: int = 1, spread: bool = True) -> str:
    """Mean, and the standard deviation over seeds; empty where nothing is known."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    text = f"{statistics.mean(known):.{digits}f}"
    return f"{text} ± {statistics.stdev(known):.{digits}f}" if spread and len(known) > 1 else text


def listed(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def parts(groups) -> Table:
    rows = [["set", "model", "steps", "strengths", *METRICS]]
    for (kind, name), some in groups.items():
        for curve in ("trained model", *some[0]["curves"]):
            if curve == "trained model":
                strengths = [0.0] * len(some)
                found = [next(iter(r["curves"].values()))["val"][0.0] for r in some]
            else:
                strengths = [r["chosen"][curve] for r in some]
                found = [r["curves"][curve]["val"][s] for r, s in zip(some, strengths)]
            cells = [mean(one[m] for one in found) for m in METRICS]
            shown = "" if curve == "trained model" else listed(strengths)
            rows.append([kind, name, curve, shown, *cells])
    return rows


def optima(groups) -> Table:
    rows = [["set", "model", "seed", "steps", "optimum", "range", "AP gained on val"]]
    for (kind, name), some in groups.items():
        for r in some:
            for curve in SHARP:
                calib, val = (_ap(r["curves"][curve][split]) for split in ("calib", "val"))
                low, high = plateau(calib, MARGIN)
                rows.append(
                    [
                        kind, name, str(r["seed"]), curve, f"{best(calib):g}",
                        f"{low:.2f} to {high:.2f}", f"{val[best(calib)] - val[0.0]:.1f}",
                    ]
                )  # fmt: skip
    return rows


def rankings(groups) -> Table:
    scores = list(next(iter(groups.values()))[0]["ranking"]["r"]) if groups else []
    rows = [["set", "model", "classes", "against", *scores]]
    for (kind, name), some in groups.items():
        for group, title in GROUPS.items():
            for against in some[0]["ranking"][group][scores[0]]:
                cells = [
                    mean((r["ranking"][group][s][against] for r in some), 3, False) for s in scores
                ]
                within = "all, pooled" if against == "pooled" else f"{against}, within class"
                rows.append([kind, name, title, within, *cells])
    return rows


def where(groups) -> Table:
    kinds = ("true rare", "false rare", "true frequent", "background")
    facts = {
        "mean foreground, logits": ("unit, logits", 1),
        "d . w negative, %": ("d . w negative, %", 0),
        "correlation of d . w and log n": ("correlation of d . w with log n", 2),
        "of x . d and the shift": ("correlation of x . d with the shift", 2),
    }
    rows = [["set", "model", *kinds, *facts]]
    for (kind, name), some in groups.items():
        found = [r["projections"] for r in some]
        cells = []
        for one in kinds:
            low, middle, high = zip(*(p["quantiles"][one] for p in found if one in p["quantiles"]))
            cells.append(
                f"{mean(middle, 2, False)} ({mean(low, 2, False)} to {mean(high, 2, False)})"
            )
        cells += [mean((p[key] for p in found), digits) for key, digits in facts.values()]
        rows.append([kind, name, *cells])
    return rows


def training(groups) -> Table:
    rows = [["set", "model", "seed", "checkpoint", *TRAINING]]
    for (kind, name), some in groups.items():
        for r in some:
            for checkpoint, one in {**r.get("earlier", {}), "final": r}.items():
                where_, auc = one["projections"], one["ranking"]["r"]
                # Chosen on the calibration split, reported on val.
                curves = one["curves"]["region part"], one["curves"]["logit adjustment + shift"]
                strength, beta = (best(_ap(curve["calib"])) for curve in curves)
                region, adjusted = (curve["val"] for curve in curves)
                ratio = where_["spread of the region part"] / where_["spread of logits"]
                rows.append(
                    [
                        kind, name, str(r["seed"]), checkpoint.removeprefix("model_"),
                        f"{where_['unit, logits']:.1f}", f"{ratio:.2f}",
                        mean([auc["x . d"]["all"]], 3), mean([auc["logit"]["all"]], 3),
                        f"{strength:g}", _pair(region[0.0]), _pair(region[strength]),
                        _pair(adjusted[beta]),
                    ]
                )  # fmt: skip
    return rows


def numbers(groups) -> Table:
    rows = [["set", "model", "number", "strengths", "AP", "APr", "AP gained", "APr gained"]]
    for (kind, name), some in groups.items():
        for number in some[0]["directions"]:
            found = [r["directions"][number] for r in some]
            starts = [next(iter(r["curves"].values()))["val"][0.0] for r in some]
            gains = [
                mean(one[m] - start[m] for one, start in zip(found, starts)) for m in ("AP", "APr")
            ]
            strengths = listed(one["strength"] for one in found)
            values = [mean(one[m] for one in found) for m in ("AP", "APr")]
            rows.append([kind, name, number, strengths, *values, *gains])
    return rows


def scales(groups) -> Table:
    """How well strengths go from model to model, on the calibration split: of each set, and all."""
    rows = [
        [
            "models", "number", "steps", "variation of the optimum: absolute", "relative",
            "AP lost with the others' optimum: absolute", "relative",
        ]
    ]  # fmt: skip
    everything = [r for some in groups.values() for r in some]
    kinds = sorted({r["kind"] for r in everything})
    choices: dict[str, Callable[[Result], bool]] = {
        kind: lambda r, k=kind: r["kind"] == k for kind in kinds
    }
    if kinds:
        choices["all"] = lambda r: True
    for title, keep in choices.items():
        some = [r for r in everything if keep(r)]
        for steps in ("region part", "TDE, both parts"):
            calib = [_ap(r["curves"][steps]["calib"]) for r in some]
            units = [
                r["projections"]["spread of the region part"] / r["projections"]["spread of logits"]
                for r in some
            ]
            optima_ = [best(curve) for curve in calib]
            relative = [optimum * unit for optimum, unit in zip(optima_, units)]
            losses = transfer_loss(calib, [1.0] * len(calib)), transfer_loss(calib, units)
            rows.append(
                [
                    title, str(len(some)), steps,
                    mean([variation(optima_)], 2), mean([variation(relative)], 2),
                    *(mean([loss], 2) for loss in losses),
                ]
            )  # fmt: skip
    return rows


def limits(groups) -> Table:
    rows = [["set", "model", "steps", "100 detections", "300", "no limit"]]
    for (kind, name), some in groups.items():
        for steps in some[0]["limits"]:
            found = [r["limits"][steps] for r in some if steps in r["limits"]]
            cells = [
                f"{mean((f[n]['AP'] for f in found), 1, False)} / "
                f"{mean((f[n]['APr'] for f in found), 1, False)}"
                for n in (100.0, 300.0, -1.0)
            ]
            rows.append([kind, name, steps, *cells])
    return rows


def powers(groups) -> Table:
    rows = [["set", "model", "alpha", "AP / APr at k 1", "k chosen", "AP / APr", "gained"]]
    for (kind, name), some in groups.items():
        for title in ("without TDE", "with TDE"):
            found = [r["powers"][title] for r in some]
            chosen = [best(_ap(f["calib"])) for f in found]
            gained = [
                mean(f["val"][k][m] - f["val"][1.0][m] for f, k in zip(found, chosen))
                for m in ("AP", "APr")
            ]
            alphas = listed(r["powers"]["alpha"] for r in some) if title == "with TDE" else "0"
            rows.append(
                [
                    kind, name, alphas, _means([f["val"][1.0] for f in found]), listed(chosen),
                    _means([f["val"][k] for f, k in zip(found, chosen)]), " / ".join(gained),
                ]
            )  # fmt: skip
    return rows


def _ap(curve: Mapping[float, Mapping[str, float]]) -> dict[float, float]:
    return {strength: metrics["AP"] for strength, metrics in curve.items()}


def _pair(metrics: Mapping[str, float]) -> str:
    return f"{metrics['AP']:.1f} / {metrics['APr']:.1f}"


def _means(found: Sequence[Mapping[str, float]]) -> str:
    return " / ".join(mean((f[m] for f in found), 1, False) for m in ("AP", "APr"))
