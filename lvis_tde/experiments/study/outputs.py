"""What a study is read from: tables in three formats, pictures, and one page with all of it."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from ...data.files import write_text
from ...evaluation.report.page import picture
from ...visualization import palette
from .numbers import disagreements, incomplete_in_words, name_of, recipe_title
from .pictures import study_pictures
from .tables import Table, latex, markdown, study_tables
from .tidy import tidy_csv

__all__ = ["write_outputs"]

_PAGE = Path(__file__).with_name("page.html")
_COLORS = {name.lower(): getattr(palette, name) for name in ("INK", "MUTED", "GRID")}
_COLORS |= {"paper": palette.PAPER, "page": palette.PAGE}
_LONG = 40  # characters from which a column of words may have more than one line


def write_outputs(study: Mapping[str, Any], output: Path) -> str:
    """Writes ``tables.md``, ``tables.tex``, ``tables.csv``, ``index.html`` and its pictures.

    Args:
        study: content of ``study.json``. Runs may lack seeds, and one seed has no intervals.
        output: folder, made if it is missing. The page needs no other file of it.

    Returns:
        What ``tables.md`` holds: first what is not as published, then the tables.
    """
    output = Path(output)
    tables = study_tables(study)
    lines = first_lines(study)
    text = markdown(tables, lines)
    write_text(output / "tables.md", text + "\n")
    write_text(output / "tables.tex", latex(tables))
    write_text(output / "tables.csv", tidy_csv(study))
    pictures = [
        (one.heading, picture(one.figure, output / f"{name}.png", alt=one.words))
        for name, one in study_pictures(study).items()
    ]
    write_text(output / "index.html", _page(study, lines, tables, pictures))
    return text


def first_lines(study: Mapping[str, Any]) -> list[str]:
    """What the page begins with: orders that are not as published, and what is missing."""
    lines = disagreements(study)
    orders = study.get("orders", ())
    if orders and not lines:
        what = "order is" if len(orders) == 1 else f"{len(orders)} orders are"
        gone = dict.fromkeys(run for one in orders for run in one.get("without", ()))
        less = f", without {', '.join(name_of(study, run) for run in gone)}" if gone else ""
        lines = [f"The published {what} reproduced by the means over seeds{less}."]
    if len(study["seeds"]) == 1:
        lines.append("One seed: another training may give another order; there is no interval.")
    begun = {run.partition("/")[0] for run in study["runs"]}
    absent = [recipe_title(study, name) for name in study["recipes"] if name not in begun]
    if absent:
        lines.append(f"No seed is finished of {', '.join(absent)}.")
    short = incomplete_in_words(study)
    if short:
        lines.append(f"Not finished: {short}. Ranks leave them out.")
    return lines


def _page(study: Mapping[str, Any], lines: list[str], tables: list[Table], pictures) -> str:
    parts = [f"<p>{escape(line)}</p>" for line in lines]
    parts.append(f'<p class="facts">{escape(_facts(study))}</p>')
    sections = [("first", "", "".join(parts))]
    sections += [("", head, f'<div class="wide">{image}</div>') for head, image in pictures]
    sections += [("", table.title, _table(table)) for table in tables]
    body = "\n".join(
        f'<section class="{kind}">' + (f"<h2>{escape(head)}</h2>" if head else "") + f"{content}"
        "</section>"
        for kind, head, content in sections
    )
    title = escape(study["title"])
    return Template(_PAGE.read_text("utf-8")).substitute(_COLORS, title=title, body=body)


def _facts(study: Mapping[str, Any]) -> str:
    data = study.get("set") or {}
    seeds = ", ".join(map(str, study["seeds"]))
    facts = [
        f"Set: {', '.join(f'{k} {v}' for k, v in data.items())}" if data else "",
        f"seeds {seeds}",
        str(study.get("date", ""))[:10],
        f"commit {study['commit']}" if study.get("commit") else "",
        str(study.get("hardware", "")),
        (
            f"{study['seconds'] / 3600:.1f} hours of training and evaluation"
            if study.get("seconds")
            else ""
        ),
    ]
    return "; ".join(fact for fact in facts if fact) + "."


def _table(table: Table) -> str:
    head, *rows = table.rows
    longest = [max(map(len, column)) for column in zip(*table.rows)]
    kinds = [
        " ".join(["left"] * (i < table.left) + ["long"] * (i < table.left and wide > _LONG))
        for i, wide in enumerate(longest)
    ]

    def line(cells, tag: str) -> str:
        found = (f'<{tag} class="{k}">{escape(c)}</{tag}>' for k, c in zip(kinds, cells))
        return f"<tr>{''.join(found)}</tr>".replace(' class=""', "")

    body = "".join(line(row, "td") for row in rows)
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<div class="wide"><table><thead>{line(head, "th")}</thead><tbody>{body}</tbody></table>'
        f"</div>{note}"
    )
