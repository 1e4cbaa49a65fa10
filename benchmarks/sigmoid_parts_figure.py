"""Score distributions of true and false rare detections, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from lvis_tde.posthoc import Settings
from lvis_tde.visualization.figure import bare, headline, new_figure
from lvis_tde.visualization.palette import GROUP_COLORS, INK, MUTED, PALE

from .sigmoid_parts_regions import Regions

__all__ = ["RareScores", "rare_scores", "score_figure"]

# Decades of scores that are drawn.
LOWEST, BINS = -6.0, 48


@dataclass(frozen=True)
class RareScores:
    """Scores of the rare detections of a model, without a limit of detections.

    Attributes:
        true, false: of those whose region shows the class, and of the others.
        passed: how many of each are among the detections that an image may have.
        cut: median over images of the lowest score among these.
    """

    true: np.ndarray
    false: np.ndarray
    passed: tuple[int, int]
    cut: float


def rare_scores(regions: Regions, settings: Settings) -> RareScores:
    """Of all images of a split."""
    rare = torch.tensor(regions.groups == "r")
    probabilities = regions.probabilities(settings)
    passed, cuts = [0, 0], []
    for _, instances, rows in regions.detect(probabilities, threshold=0.0):
        mine = rare[instances.pred_classes]
        shows = regions.labels[rows] == instances.pred_classes
        passed[0] += int((mine & shows).sum())
        passed[1] += int((mine & ~shows).sum())
        if len(instances) == regions.limit:
            cuts.append(float(instances.scores[-1]))
    only = probabilities.clone()
    only[:, :-1][:, ~rare] = 0
    true, false = [], []
    for _, instances, rows in regions.detect(only, -1, 10**LOWEST):
        shows = regions.labels[rows] == instances.pred_classes
        true.append(instances.scores[shows].numpy())
        false.append(instances.scores[~shows].numpy())
    cut = float(np.median(cuts)) if cuts else 0.0
    return RareScores(np.concatenate(true), np.concatenate(false), (passed[0], passed[1]), cut)


def score_figure(sets: dict[str, Sequence[tuple[Regions, dict[str, Settings]]]]) -> Figure:
    """A row for each set, a column for each step.

    Args:
        sets: name of a set to the regions of its models (seeds), each with titles of the steps and
            their settings.
    """
    rows, columns = len(sets), len(next(iter(sets.values()))[0][1])
    figure = new_figure(0.5 + 2.8 * columns, 0.95 + 2.35 * rows)
    height, width = figure.get_figheight(), 0.93 / columns
    true_color, false_color = GROUP_COLORS["r"], PALE
    bins = np.linspace(LOWEST, 0, BINS + 1)
    for row, (name, models) in enumerate(sets.items()):
        for column in range(columns):
            bottom = 0.5 / height + (rows - 1 - row) * 2.35 / height
            left = 0.045 + column * width
            axes = figure.add_axes((left, bottom, width * 0.9, 1.5 / height))
            found = [rare_scores(r, list(steps.values())[column]) for r, steps in models]
            true = np.concatenate([f.true for f in found])
            false = np.concatenate([f.false for f in found])
            peak = 0.0
            for scores, color, alpha in ((false, false_color, 1.0), (true, true_color, 0.55)):
                log = np.log10(np.clip(scores, 10**LOWEST, 1))
                share = np.histogram(log, bins)[0] / max(len(log), 1)
                axes.stairs(100 * share, bins, fill=True, color=color, alpha=alpha)
                axes.stairs(100 * share, bins, color=color, lw=1.2)
                peak = max(peak, 100 * share.max())
            cut = np.log10(max(np.median([f.cut for f in found]), 10**LOWEST))
            axes.axvline(cut, color=INK, lw=1, ls=(0, (4, 3)))
            passed = [
                100 * sum(f.passed[i] for f in found) / max(len(scores), 1)
                for i, scores in enumerate((true, false))
            ]
            axes.set_ylim(0, 1.28 * peak)
            left = cut > LOWEST / 3
            axes.text(
                cut + (-0.08 if left else 0.08), 1.24 * peak,
                f"pass: {passed[0]:.0f} % of true,\n{passed[1]:.1f} % of false",
                va="top", ha="right" if left else "left", size=8.5, color=INK,
            )  # fmt: skip
            title = _title([list(steps)[column] for _, steps in models])
            axes.set_title(f"{name}: {title}", loc="left", size=9.5, color=INK)
            axes.set_xlim(LOWEST, 0)
            axes.set_xticks(range(int(LOWEST) + 1, 0))
            axes.xaxis.set_major_formatter(FuncFormatter(_power))
            axes.set_yticks([])
            bare(axes)
            if row == rows - 1:
                axes.set_xlabel("score", color=MUTED, size=9)
    legend = [("show their class", true_color), ("do not", false_color)]
    limit = next(iter(sets.values()))[0][0].limit
    legend.append((f"lowest score among an image's {limit} detections, median", INK))
    headline(figure, "Detections of rare classes by score, each kind's own distribution", legend)
    return figure


def _title(titles: Sequence[str]) -> str:
    """Of all seeds: the one title, or what differs joined."""
    if len(set(titles)) == 1:
        return titles[0]
    words, *others = (title.split(" ") for title in titles)
    columns = zip(words, *others)
    return " ".join("/".join(dict.fromkeys(column)) for column in columns)


def _power(value: float, _: int) -> str:
    return {0: "1", -1: "0.1", -2: "0.01"}.get(round(value), f"$10^{{{round(value)}}}$")
