"""The page itself: sections and pictures in one self-contained file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from matplotlib.figure import Figure

from ...data.files import atomic_path, write_text
from ...visualization import palette

__all__ = ["picture", "write_page"]

_PAGE = Path(__file__).with_name("page.html")
_COLORS = {name.lower(): getattr(palette, name) for name in ("INK", "MUTED", "GRID")}
_COLORS |= {"paper": palette.PAPER, "page": palette.PAGE}


def write_page(folder: Path, title: str, sections: Sequence[tuple[str, str]]) -> Path:
    """Write ``report.html``.

    Args:
        folder: made if it is missing.
        title: plain text.
        sections: headings in plain text, contents as HTML. One of them has the table of
            :func:`~lvis_tde.evaluation.report.tables.filtered`.

    Returns:
        Path of the page, which needs no other file.
    """
    body = "\n".join(f"<section><h2>{escape(t)}</h2>{part}</section>" for t, part in sections)
    page = Template(_PAGE.read_text("utf-8")).substitute(_COLORS, title=escape(title), body=body)
    write_text(folder / "report.html", page)
    return folder / "report.html"


def picture(figure: Figure, path: Path, width: int = 0, *, alt: str = "") -> str:
    """Save a figure.

    Args:
        figure: as charts return it.
        path: of the PNG.
        width: in the page, pixels; 0 for as wide as it is.
        alt: what it shows, in words, for those who do not see it.

    Returns:
        The picture itself as HTML.
    """
    with atomic_path(path) as partial:
        figure.savefig(partial, dpi=150)
        data = base64.b64encode(partial.read_bytes()).decode()
    style = f' style="width:{width}px"' if width else ""
    return f'<img alt="{escape(alt, quote=True)}"{style} src="data:image/png;base64,{data}">'
