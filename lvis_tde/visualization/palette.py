"""Every color of the charts, pictures and pages, and the names of what they stand for.

The colors of groups are from Okabe and Ito's palette, which color-blind readers can tell apart.
"""

from __future__ import annotations

from collections.abc import Iterable

GROUPS = {"r": "rare", "c": "common", "f": "frequent"}
# The groups of classification, many images first as its tables have them.
TOP1_GROUPS = {"f": "many", "c": "medium", "r": "few"}
GROUP_COLORS = {"r": "#D55E00", "c": "#0072B2", "f": "#009E73"}
KINDS = {"segm": "Mask", "bbox": "Box", "boundary": "Boundary"}
# The demo's runs: grays for softmax, blues for de-confound, reds and browns for sigmoids.
RUN_NAMES = {
    "softmax": "softmax",
    "softmax_tde": "softmax, TDE on",
    "deconfound": "de-confound, TDE off",
    "tde": "de-confound, TDE on",
    "sigmoid": "sigmoid",
    "sigmoid_tde": "sigmoid, TDE on",
    "sigmoid_federated": "federated sigmoid",
    "sigmoid_federated_tde": "federated sigmoid, TDE on",
    "sigmoid_deconfound": "de-confound sigmoid",
    "sigmoid_deconfound_tde": "de-confound sigmoid, TDE on",
}
RUN_COLORS = {
    "softmax": "#B8B8B8",
    "softmax_tde": "#6F6F6F",
    "deconfound": "#56B4E9",
    "tde": "#0B4F7D",
    "sigmoid": "#E3A3C4",
    "sigmoid_tde": "#8E2F67",
    "sigmoid_federated": "#E8C67A",
    "sigmoid_federated_tde": "#8A5A00",
    "sigmoid_deconfound": "#BDB2DC",
    "sigmoid_deconfound_tde": "#54448F",
}
# The rows of a table of methods, see lvis_tde.calibration.methods.
METHOD_NAMES = {
    "factual": "as trained",
    "tde": "TDE",
    "tde_joint": "TDE, no exemption",
    "tde_region": "TDE, region part",
    "tde_class": "TDE, class part",
    "tde_keep_sum": "TDE, sum kept",
    "tau_norm": "tau-norm",
    "logit_adjustment": "logit adjustment",
    "logit_adjustment_free": "logit adj., no shift",
    "norcal": "NorCal",
    "logn": "LogN",
    "fracal": "FRACAL",
    "class_means": "class means",
    "composition": "composition",
}
# Nothing, this package's own, the best of all; those of others are muted.
METHOD_COLORS = {"factual": "#1F2933", "tde": "#0072B2", "composition": "#D55E00"}
_OTHER_RUNS = (
    *("#B8B8B8", "#0B4F7D", "#56B4E9", "#CC79A7", "#E69F00"),
    *("#6F6F6F", "#8A5A00", "#54448F", "#2A7F62", "#8E2F67"),
)
# One color and one marker a recipe of a study: shapes tell apart what colors do not. Those of Okabe
# and Ito without their yellow, which is too pale for lines, and some darker ones.
_SERIES = {"softmax": ("#6F6F6F", "o"), "de-confound": ("#0072B2", "s")}
_OTHER_SERIES = (
    *(("#D55E00", "^"), ("#009E73", "D"), ("#CC79A7", "v"), ("#E69F00", "P"), ("#56B4E9", "X")),
    *(("#54448F", "<"), ("#8A5A00", ">"), ("#1F2933", "h"), ("#2A7F62", "p"), ("#8E2F67", "*")),
)
# One letter or two for each method, where many are shown at once.
METHOD_LETTERS = {
    "tde": "T",
    "tde_joint": "Tj",
    "tde_region": "Tr",
    "tde_class": "Tc",
    "tde_keep_sum": "Ts",
    "tau_norm": "τ",
    "logit_adjustment": "L",
    "logit_adjustment_free": "Lf",
    "norcal": "N",
    "logn": "Ln",
    "fracal": "F",
    "class_means": "M",
    "composition": "C",
}

INK = "#1F2933"
MUTED = "#52606D"
PALE = "#BBBBBB"
GRID = "#E4E7EB"
PAPER = "#FFFFFF"
PAGE = "#F5F7FA"
# Itself, another rare class, a common one, a frequent one, nothing.
OUTCOME_COLORS = (INK, *GROUP_COLORS.values(), "#DDE2E7")


def run_colors(runs: Iterable[str]) -> dict[str, str]:
    """A color per run: its own, or the next that no other run has.

    Args:
        runs: names, those of :data:`RUN_COLORS` or any others.

    Returns:
        Run to color, in the order of ``runs``. After ten others the colors repeat.
    """
    runs = list(runs)
    used = {RUN_COLORS[run] for run in runs if run in RUN_COLORS}
    spare = [color for color in _OTHER_RUNS if color not in used] or list(_OTHER_RUNS)
    others = [run for run in runs if run not in RUN_COLORS]
    given = {run: spare[i % len(spare)] for i, run in enumerate(others)}
    return {run: RUN_COLORS.get(run) or given[run] for run in runs}


def ramp(count: int) -> list[str]:
    """Shades of one color for what has an order.

    Args:
        count: how many, >= 0.

    Returns:
        From light to dark.
    """
    light, dark = (0xA6, 0xCB, 0xE8), (0x08, 0x30, 0x5B)
    steps = [i / max(count - 1, 1) for i in range(count)]
    mixed = [[round(a + (b - a) * t) for a, b in zip(light, dark)] for t in steps]
    return ["#" + "".join(f"{one:02X}" for one in color) for color in mixed]


def series_styles(titles: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Color and marker of each recipe of a study.

    Args:
        titles: of the recipes.

    Returns:
        Title to both, in the order of ``titles``. After twelve others they repeat.
    """
    titles = list(titles)
    others = [title for title in titles if title not in _SERIES]
    given = {t: _OTHER_SERIES[i % len(_OTHER_SERIES)] for i, t in enumerate(others)}
    return {title: _SERIES.get(title) or given[title] for title in titles}
