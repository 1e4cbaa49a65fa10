"""Pictures of a long-tailed set: images per class, examples, confusions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter
from PIL import Image

from lvis_tde.data.frequency import LVIS_BOUNDS, frequency_group
from lvis_tde.visualization.detections import draw_comparison
from lvis_tde.visualization.figure import bare, figure_to_array, headline, new_figure
from lvis_tde.visualization.palette import (
    GROUP_COLORS,
    GROUPS,
    INK,
    MUTED,
    OUTCOME_COLORS,
    PALE,
    PAPER,
)

from .set_confusions import OUTCOMES

__all__ = ["choose_examples", "confusion_figure", "count_figure", "example_picture"]

WIDTH = 1200  # of the picture of examples, in pixels
MAX_HEIGHT = 300  # of an example, in pixels
MAX_OBJECTS = 6


def count_figure(sets: Mapping[str, Sequence[int]], lvis: Sequence[int]) -> Figure:
    """Training images of each class by rank, beside LVIS's.

    Args:
        sets: name of a set to the images of its classes, descending; the first in the colors of
            the groups.
        lvis: the same of LVIS v1.
    """
    figure = new_figure(8.4, 4.4)
    axes = figure.add_axes((0.075, 0.13, 0.90, 0.67))
    axes.plot(_ranks(lvis), lvis, color=PALE, lw=5, solid_capstyle="round", zorder=2)
    for index, counts in enumerate(sets.values()):
        x, y = _ranks(counts), np.array(counts)
        colors = [GROUP_COLORS[frequency_group(n)] for n in counts] if not index else MUTED
        axes.scatter(x, y, s=14 if not index else 4, c=colors, linewidths=0, zorder=3)
    for bound in LVIS_BOUNDS:
        axes.axhline(bound, color=MUTED, lw=0.8, ls=(0, (4, 3)), zorder=1)
        axes.text(100, bound * 1.06, f"{bound} images", ha="right", size=8.5, color=MUTED)
    axes.set_yscale("log")
    axes.set_ylim(0.8, 1.35 * max(max(lvis), *(max(c) for c in sets.values())))
    axes.set_xlim(0, 100.5)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.minorticks_off()
    bare(axes, "y")
    axes.set_xlabel("rank of the class, % of all classes (most frequent first)", color=MUTED)
    first, *others = sets
    legend = [(f"LVIS v1, {len(lvis):,} classes", PALE)]
    legend += [(f"{GROUPS[g]} here", color) for g, color in GROUP_COLORS.items()]
    legend += [(", ".join(others), MUTED)] if others else []
    headline(
        figure, f"Training images of each class: {first}, {len(sets[first]):,} classes", legend
    )
    return figure


def _ranks(counts: Sequence[int]) -> np.ndarray:
    return 100 * (np.arange(len(counts)) + 0.5) / len(counts)


def choose_examples(records: Sequence[Mapping], frequency: Sequence[str], number: int) -> list:
    """Images with up to six objects, those whose classes are of most groups first.

    Args:
        records: in Detectron2's format; where there is a choice, the first.
        frequency: "r", "c" or "f" of each class.
        number: how many, at most.
    """
    classes = [{a["category_id"] for a in record["annotations"]} for record in records]
    shown = [len({frequency[c] for c in some}) for some in classes]
    fit = [i for i, r in enumerate(records) if 0 < len(r["annotations"]) <= MAX_OBJECTS]
    return [records[i] for i in sorted(fit, key=lambda i: -shown[i])[:number]]


def example_picture(dataset: str, number: int) -> Image.Image:
    """Annotated images of a registered set in two rows, reduced to 256 colors.

    Args:
        dataset: registered name.
        number: of images; see :func:`choose_examples`.

    Raises:
        ValueError: if no image is fit.
    """
    meta = MetadataCatalog.get(dataset)
    records = choose_examples(DatasetCatalog.get(dataset), meta.class_frequency, number)
    if not records:
        raise ValueError(f"{dataset} has no image with 1 to {MAX_OBJECTS} objects")
    half = (len(records) + 1) // 2
    rows = [_row(some, meta) for some in (records[:half], records[half:]) if some]
    picture = np.concatenate([_legend(), *rows])
    picture = Image.fromarray(picture)
    # Noise and 16 million colors do not compress.
    palette = picture.quantize(256, kmeans=3)
    return picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)


def _row(records, meta) -> np.ndarray:
    """Images of one height, together as wide as the picture."""
    gap = 28  # that draw_comparison leaves beside an image
    height = (WIDTH - gap * len(records)) / sum(r["width"] / r["height"] for r in records)
    height = min(height, MAX_HEIGHT)
    parts = []
    for record in records:
        part = draw_comparison(
            read_image(record["file_name"], "RGB"),
            [("", record)],
            class_names=meta.thing_classes,
            class_frequency=meta.class_frequency,
            panel_size=round(height * max(1, record["width"] / record["height"])),
            legend=False,
        )
        parts.append(part)
    tall, wide = max(p.shape[0] for p in parts), sum(p.shape[1] for p in parts)
    row = np.full((tall, max(WIDTH, wide), 3), 255, np.uint8)
    left = 0
    for part in parts:
        row[: part.shape[0], left : left + part.shape[1]] = part
        left += part.shape[1]
    return row[:, :WIDTH]


def _legend() -> np.ndarray:
    figure = new_figure(WIDTH / 100, 0.66)
    groups = [(f"{name} class", GROUP_COLORS[group]) for group, name in GROUPS.items()]
    headline(figure, "Images of the val split, with their annotations", groups)
    return figure_to_array(figure)


def confusion_figure(
    shares: Mapping[str, Mapping[str, float | None]], min_score: float
) -> Figure:  # fmt: skip
    """A bar of outcomes for the objects of each group.

    Args:
        shares: as from :func:`~benchmarks.set_confusions.confusion_shares`.
        min_score: of the detections that counted, for the title.
    """
    figure = new_figure(8.4, 2.9)
    axes = figure.add_axes((0.17, 0.06, 0.80, 0.64))
    for row, group in enumerate(reversed(list(GROUPS))):
        left = 0.0
        for outcome, color in zip(OUTCOMES, OUTCOME_COLORS):
            share = shares[group][outcome] or 0.0
            axes.barh(row, share, left=left, color=color, height=0.66)
            if share >= 3:
                shade = INK if color == OUTCOME_COLORS[-1] else PAPER
                axes.text(
                    left + share / 2, row, f"{share:.0f}", color=shade,
                    ha="center", va="center", size=9.5,
                )  # fmt: skip
            left += share
    bare(axes)
    axes.spines["bottom"].set_visible(False)
    labels = [f"{GROUPS[g]} classes\n{shares[g]['objects']:,} objects" for g in reversed(GROUPS)]
    axes.set_yticks(range(len(labels)), labels, size=9.5)
    axes.set_xlim(0, 100)
    axes.set_xticks([])
    names = ["the right class", *(f"another {GROUPS[g]} class" for g in GROUPS), "nothing"]
    headline(
        figure,
        f"What objects are taken for by the detection of highest score (from {min_score:g}; %)",
        list(zip(names, OUTCOME_COLORS)),
    )
    return figure
