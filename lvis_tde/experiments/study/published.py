"""What the paper published of the runs that a study repeats.

Mask AP, APr, APc, APf and box AP in percent, by the authors' own code on LVIS v0.5 val: Tang, Huang
and Zhang, NeurIPS 2020, tables 4 and 5, which have HTC without the semantic branch, R101-FPN. That
is another detector and another set, so only orders and signs can be compared.
"""

from __future__ import annotations

__all__ = ["PAPER", "PAPER_SOURCE"]

PAPER_SOURCE = "Tang et al., NeurIPS 2020, LVIS v0.5 val, HTC R101-FPN"
# None where the figure is not known here; what is not published is not made up.
PAPER: dict[str, tuple[float, ...] | None] = {
    "softmax/factual": (22.6, 2.5, 23.0, 30.2, 24.3),
    "softmax/tde": None,
    "cosine/factual": None,
    "cosine/tde": (28.1, 20.8, 28.7, 30.3, 30.6),
    "cosine/tde_joint": None,
    "capsule/factual": None,
    "capsule/tde": (28.4, 21.1, 29.7, 29.6, 30.4),
    "capsule/tde_joint": None,
    "deconfound/factual": (25.7, 11.4, 26.1, 30.9, 27.7),
    "deconfound/tde": (28.4, 22.1, 29.0, 30.3, 31.0),
    "deconfound/tde_joint": (23.4, 13.1, 23.6, 27.1, 24.8),
}
